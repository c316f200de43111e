"""The fused form against the dense truth in float64, on a GPU: loss and both gradients."""

import pytest
import torch
from on_gpu import (
    BACKEND,
    DEVICE,
    MODES,
    REHEARSAL,
    compare,
    draw,
    needs_gpu,
    relative_errors,
    run,
    wide,
)
from shipped import forced, shipped_configurations

from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

pytestmark = needs_gpu

DIMS = (1, 3, 16, 60, 64, 96, 123, 128, 192, 256, 320, 512)
KINDS = ("bank", "entries", "itself", "pieces")
MININGS = {
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=20, num_positives=9),
    "semi-hard": HardNegativeSampler(ratio=0.4, num_negatives=15, num_positives=None),
    "random": HardNegativeSampler(strategy="random", num_negatives=None, num_positives=12),
}


def problem(kind, mode, dim):
    """Odd sizes, some labels ignored; a bank stands in order of its classes, other entries not."""
    dtype, _ = MODES[mode]
    anchors = draw(131, dim, dtype)
    if kind == "itself":
        return (*anchors, None, None)
    if kind == "bank":
        return (*anchors, *draw(517, dim, dtype, seed=1, in_order=True))
    if kind == "entries":
        return (*anchors, *draw(333, dim, dtype, seed=2))
    pieces = [draw(203, dim, dtype, seed=3, in_order=True), (None, None)]
    # Of another dtype, but numbers that rounding to the anchors' leaves as they are.
    vectors, labels = draw(97, dim, dtype, seed=4)
    pieces += [(vectors.float(), labels), draw(0, dim, dtype)]
    return (*anchors, [vectors for vectors, _ in pieces], [labels for _, labels in pieces])


def per_anchor():
    """An upstream gradient of its own for each anchor, some of them zero."""
    upstream = torch.rand(131, generator=torch.Generator().manual_seed(9))
    upstream[::7] = 0.0
    return upstream.to(DEVICE)


# The lowest decorator varies slowest: tests that share compiled kernels stand together.
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients(mode, dim, kind, denominator):
    compare(
        problem(kind, mode, dim),
        mode,
        per_anchor(),
        entries_want_gradient=kind != "bank",
        denominator=denominator,
        reduction="none",
    )


@pytest.mark.skipif(bool(REHEARSAL), reason="kernels on a GPU alone ask for their tiles")
@pytest.mark.parametrize("near_the_limit", [True, False], ids=["widest", "narrower"])
@pytest.mark.parametrize("configuration", shipped_configurations())
def test_every_shipped_configuration(configuration, near_the_limit, monkeypatch):
    dim = configuration.largest_dim - (0 if near_the_limit else 5)
    with forced(configuration, monkeypatch):
        for mode in configuration.modes:
            for kind in ("bank", "pieces"):
                arguments = problem(kind, mode, dim)
                wants = kind != "bank"
                compare(arguments, mode, per_anchor(), wants, reduction="none")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("mode", ["bf16", "float32"])
def test_reductions_and_weights(mode, weighted, reduction):
    weight = per_anchor() if weighted else None
    compare(problem("pieces", mode, 64), mode, weight=weight, reduction=reduction)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("name", MININGS)
@pytest.mark.parametrize("mode", ["bf16", "float32"])
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
