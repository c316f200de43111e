"""The fused form against the dense truth in float64, on a GPU: loss and both gradients."""

import itertools

import pytest
import torch
from internals import matmul_precision, use_configuration
from on_gpu import (
    BACKEND,
    COUNTING,
    DEVICE,
    INTERPRETED,
    MODES,
    REHEARSAL,
    assert_within_tf32,
    compare,
    draw,
    needs_gpu,
    relative_errors,
    run,
    wide,
)
from shipped import capability_here, configurations_of_other_cards

from benchmarks._ways.formulas import our_loss
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

pytestmark = needs_gpu

COMPLETE_DIMS = (64, 128, 256)
"""The embedding sizes most used: every combination is tested."""
OTHER_DIMS = (1, 3, 16, 60, 96, 123, 192, 320, 512)
"""Each with one mode of 16 bits and one of float32; kinds and denominators take turns."""
KINDS = ("bank", "entries", "itself", "pieces")
DENOMINATORS = ("negatives", "all")
MININGS = {
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=20, num_positives=9),
    "semi-hard": HardNegativeSampler(ratio=0.4, num_negatives=15, num_positives=None),
    "random": HardNegativeSampler(strategy="random", num_negatives=None, num_positives=12),
}
MINED_CASES = [
    (name, mode, DENOMINATORS[(turn + place) % 2])
    for place, name in enumerate(MININGS)
    for turn, mode in enumerate(("bf16", "float32"))
]
SCALE = 4 if INTERPRETED else 1
"""The interpreter takes minutes for the sizes below."""
ROWS = 132 // SCALE
"""Anchors: no multiple of any tile. A multiple of 4 keeps every partial result aligned to 16 bytes,
so that one variant of a kernel is enough; `UNALIGNED_ROWS` needs the other."""
UNALIGNED_ROWS = 131 // SCALE


def cases():
    """Mode, D, kind of entries and denominator; cases that share kernels are neighbours."""
    for dim, mode in itertools.product(COMPLETE_DIMS, MODES):
        for denominator, kind in itertools.product(DENOMINATORS, KINDS):
            yield mode, dim, kind, denominator
    for turn, dim in enumerate(OTHER_DIMS):
        modes = ("bf16", "fp16")[turn % 2], ("tf32", "float32")[turn // 2 % 2]
        for place, mode in enumerate(modes):
            denominator = DENOMINATORS[(turn // 2 + place) % 2]
            yield mode, dim, KINDS[(turn + place) % 4], denominator


def problem(kind, mode, dim, rows=ROWS):
    """Odd sizes and some labels ignored; a bank is sorted by class, other entries are not."""
    dtype, _ = MODES[mode]
    anchors = draw(rows, dim, dtype)
    if kind == "itself":
        return (*anchors, None, None)
    if kind == "bank":
        return (*anchors, *draw(517 // SCALE, dim, dtype, seed=1, in_order=True))
    if kind == "entries":
        return (*anchors, *draw(333 // SCALE, dim, dtype, seed=2))
    pieces = [draw(203 // SCALE, dim, dtype, seed=3, in_order=True), (None, None)]
    # Of another dtype, with numbers that do not change when they are rounded to the anchors' dtype.
    vectors, labels = draw(97 // SCALE, dim, dtype, seed=4)
    pieces += [(vectors.float(), labels), draw(0, dim, dtype)]
    return (*anchors, [vectors for vectors, _ in pieces], [labels for _, labels in pieces])


def per_anchor(rows=ROWS):
    """An upstream gradient of its own for each anchor, some of them zero."""
    upstream = torch.rand(rows, generator=torch.Generator().manual_seed(9))
    upstream[::7] = 0.0
    return upstream.to(DEVICE)


@pytest.mark.parametrize(("mode", "dim", "kind", "denominator"), [*cases()])
def test_loss_and_gradients(mode, dim, kind, denominator):
    compare(
        problem(kind, mode, dim),
        mode,
        per_anchor(),
        entries_want_gradient=kind != "bank",
        denominator=denominator,
        reduction="none",
    )


TF32_BOUND = 2 * 2**-9 / 0.1
"""A card truncates operands to TF32, each by up to 2^-10 of itself: similarities of unit vectors by
up to 2^-9 / τ, a loss by twice that, and softmax weights by that factor."""
UNIT_LENGTH_BOUNDS = {
    # 16-bit operands have exact products in float32, so that only gradients are rounded: each of
    # two operands of the second product and the result, by half an eps.
    "bf16": (1e-5, 4 * 2**-7),
    "fp16": (1e-5, 4 * 2**-10),
    "tf32": (TF32_BOUND, TF32_BOUND),
    "float32": (1e-5, 1e-5),
}


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("mode", MODES)
def test_vectors_of_unit_length(mode, dim):
    """In the form that the losses call."""
    drawn = problem("bank", mode, dim)
    results = []
    for backend, (anchors, *given) in ((BACKEND, drawn), ("dense", wide(drawn))):
        leaf = anchors.clone().requires_grad_()
        with matmul_precision(MODES[mode][1]):
            loss = our_loss(leaf, *given, backend=backend, unit_length=True)
            results.append([loss.detach(), *torch.autograd.grad(loss, leaf)])
    if not COUNTING:
        for error, bound in zip(relative_errors(*results), UNIT_LENGTH_BOUNDS[mode], strict=True):
            assert error <= bound


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("kind", ["entries", "itself"])
@pytest.mark.parametrize("dim", COMPLETE_DIMS)
def test_tf32_of_vectors_that_it_does_not_represent(dim, kind, denominator):
    """Operands lose up to 13 bits: `tf32_bounds` says how far the results may be off."""
    arguments, upstream = problem(kind, "tf32", dim), per_anchor()
    options = {"denominator": denominator, "reduction": "none"}
    with matmul_precision("high"):
        ours = run(BACKEND, arguments, upstream, **options)
    truth = run("dense", wide(arguments), wide(upstream), **options)
    assert_within_tf32(ours, truth, arguments, upstream, exact_vectors=False, **options)


@pytest.mark.skipif(
    bool(REHEARSAL) and not COUNTING, reason="kernels on a GPU alone ask for their tiles"
)
@pytest.mark.parametrize("row", configurations_of_other_cards(capability_here()))
def test_tiles_of_other_cards(row):
    """The three passes over tiles; what the tiles do not change is tested above."""
    anchors, labels, entries, entry_labels = problem("entries", row.mode, row.largest_dim)
    if row.kind == "mixed":
        entries = entries.float()
    with use_configuration(row.tiles):
        arguments = (anchors, labels, entries, entry_labels)
        compare(arguments, row.mode, per_anchor(), reduction="none")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("mode", ["bf16", "float32"])
def test_reductions_and_weights(mode, weighted, reduction):
    weight = per_anchor(UNALIGNED_ROWS) if weighted else None
    arguments = problem("pieces", mode, 64, UNALIGNED_ROWS)
    compare(arguments, mode, weight=weight, reduction=reduction)


@pytest.mark.parametrize(("name", "mode", "denominator"), MINED_CASES)
def test_mining(mode, name, denominator):
    results = []
    arguments = problem("pieces", mode, 64)
    for backend, given in ((BACKEND, arguments), ("dense", wide(arguments))):
        generator = torch.Generator(DEVICE).manual_seed(7)
        options = {
            "negative_sampler": MININGS[name],
            "generator": generator,
            "denominator": denominator,
        }
        results.append(run(backend, given, None, **options))
    errors = relative_errors(*results)
    assert errors[0] < 1e-5
    assert max(errors[1:]) < max(4 * torch.finfo(arguments[0].dtype).eps, 1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("length", [0.1, 1.0, 30.0])
def test_vectors_of_any_length(temperature, length):
    anchors, anchor_labels, entries, entry_labels = problem("entries", "float32", 64)
    arguments = (length * anchors, anchor_labels, entries, entry_labels)
    largest = length / temperature
    if largest <= 10:
        compare(arguments, "float32", temperature=temperature)
        return
    # Similarities this large are themselves rounded: to eps of their size, in every form.
    given = [run(b, arguments, None, temperature=temperature) for b in (BACKEND, "dense")]
    for actual, expected in zip(*given, strict=True):
        atol = 2e-6 * largest * max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["entries", "itself"])
def test_nan_in_ignored_entries_reaches_nothing(kind):
    anchors, anchor_labels, entries, entry_labels = problem(kind, "bf16", 64)
    spoilt = anchors.clone()
    spoilt[(anchor_labels < 0) | (anchor_labels == 255)] = float("nan")
    bad = None
    if entries is not None:
        bad = entries.clone()
        bad[(entry_labels < 0) | (entry_labels == 255)] = float("inf")
    clean = run(BACKEND, (anchors, anchor_labels, entries, entry_labels), None)
    dirty = run(BACKEND, (spoilt, anchor_labels, bad, entry_labels), None)
    for actual, expected in zip(dirty, clean, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("rows", "columns"), [(0, 50), (50, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hardly_anything(rows, columns, reduction):
    anchors, anchor_labels = draw(rows, 64, torch.bfloat16)
    entries, entry_labels = draw(columns, 64, torch.bfloat16, seed=1)
    leaf, wanted = anchors.requires_grad_(), entries.requires_grad_()
    loss = info_nce(leaf, anchor_labels, wanted, entry_labels, reduction=reduction, backend=BACKEND)
    loss.sum().backward()
    assert loss.shape == ((rows,) if reduction == "none" else ())
    for tensor in (loss, leaf.grad, wanted.grad):
        assert (tensor == 0).all()


def test_asked_for_or_not_the_gradient_of_entries_changes_nothing_else():
    arguments = problem("entries", "bf16", 128)
    with_entries = run(BACKEND, arguments, None, True)
    without = run(BACKEND, arguments, None, False)
    for actual, expected in zip(without, with_entries[:2], strict=True):
        assert torch.equal(actual, expected)
