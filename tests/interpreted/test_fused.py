"""The fused form against the textbook form in float64: the loss and both gradients."""

import dataclasses

import pytest
import torch
from problems import IGNORE, labels, loss_and_gradients, vectors, worst_error

from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RegionContrastLoss
from pixcontrast._equation import autograd, fused
from pixcontrast._equation.fused_layout import lay_out
from pixcontrast._equation.operators import losses_operator
from pixcontrast.functional import info_nce

BOUND = 1e-5  # relative, float32
DENOMINATORS = ("negatives", "all")
MININGS = {
    "everything": None,
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=5, num_positives=3),
    "semi-hard": HardNegativeSampler(ratio=0.4, num_negatives=3, num_positives=None),
    "random": HardNegativeSampler(strategy="random", num_negatives=4, num_positives=2),
}
each_denominator = pytest.mark.parametrize("denominator", DENOMINATORS)


def draw(pieces, num_anchors=45, dim=5, seed=3, dtype=torch.float32):
    """Anchors and contrast of 5 classes: a sorted bank, the anchors themselves, or several."""
    generator = torch.Generator().manual_seed(seed)
    anchors, anchor_labels = vectors(num_anchors, dim, generator), labels(num_anchors, 5, generator)
    bank, bank_labels = vectors(150, dim, generator), torch.arange(150) // 30
    bank_labels[25:30] = bank_labels[40:60] = bank_labels[70:120] = IGNORE  # not yet written
    other, other_labels = vectors(37, dim, generator), labels(37, 7, generator)
    chosen = {
        "bank": (bank, bank_labels),
        "itself": (None, None),
        "several": ([other, None, bank], [other_labels, None, bank_labels]),
    }[pieces]
    return cast((anchors, anchor_labels, *chosen), dtype)


def cast(value, dtype):
    if isinstance(value, (list, tuple)):
        return type(value)(cast(one, dtype) for one in value)
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def errors(arguments, reference="dense", **options):
    """How far the fused form, and `reference` in the same dtype, are from float64."""
    options.setdefault("generator", torch.Generator().manual_seed(7))

    def run(backend, given):
        generator = torch.Generator().manual_seed(7)
        return loss_and_gradients(backend, *given, **{**options, "generator": generator})

    truth = run("dense", cast(arguments, torch.float64))
    return [worst_error(run(backend, arguments), truth) for backend in ("triton", reference)]


@each_denominator
@pytest.mark.parametrize("pieces", ["bank", "itself", "several"])
@pytest.mark.parametrize("mining", MININGS.values(), ids=MININGS.keys())
def test_fused_equals_dense(pieces, denominator, mining):
    fused, _ = errors(draw(pieces), denominator=denominator, mining=mining)
    assert fused < BOUND


@pytest.mark.parametrize("dim", [1, 3, 16, 60, 64, 96, 123, 320])
def test_any_number_of_components(dim):
    fused, _ = errors(draw("several", num_anchors=20, dim=dim))
    assert fused < BOUND


def test_as_many_components_as_there_may_be():
    fused, _ = errors(draw("itself", num_anchors=10, dim=512))
    assert fused < BOUND


@each_denominator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("pieces", ["bank", "itself", "several"])
def test_sixteen_bits(pieces, dtype, denominator):
    """Twice the error of plain PyTorch in that dtype at most; its smallest step for free."""
    fused, dense = errors(draw(pieces, dtype=dtype), denominator=denominator)
    assert fused < 2 * dense + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bank_of_another_dtype(dtype, bank_dtype):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    arguments = (anchors.to(dtype), anchor_labels, bank.to(bank_dtype), bank_labels)
    results = [loss_and_gradients(backend, *arguments) for backend in ("triton", "tiled")]
    assert [made.dtype for made in results[0]] == [torch.float32, dtype, bank_dtype]
    eps = max(torch.finfo(kind).eps for kind in (dtype, bank_dtype))
    assert worst_error(*([made.double() for made in result] for result in results)) < 4 * eps


def test_entries_too_large_for_the_product_saturate():
    anchors = torch.tensor([[1.0, 0.0]], dtype=torch.float16, requires_grad=True)
    entries = torch.tensor([[1e-3, 1e5], [0.0, 1.0]])
    arguments = (anchors, torch.tensor([0]), entries, torch.tensor([0, 1]))
    losses = [info_nce(*arguments, backend=backend) for backend in ("triton", "tiled")]
    torch.testing.assert_close(*losses)
    # Of the gradient, 65504 / τ is more than float16 holds, and so infinite in either.
    torch.testing.assert_close(*(torch.autograd.grad(loss, anchors)[0] for loss in losses))


@each_denominator
@pytest.mark.parametrize("temperature", [0.02, 0.1, 5.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 30.0])
def test_any_length_and_temperature(length, temperature, denominator):
    """To what the rounding of the similarities themselves allows."""
    anchors, anchor_labels, *rest = draw("several")
    arguments = (length * anchors, anchor_labels, *rest)
    fused, dense = errors(arguments, temperature=temperature, denominator=denominator)
    assert fused < BOUND + 4 * dense


@each_denominator
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_similarities_that_overflow_saturate(denominator):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    arguments = (1e18 * anchors, anchor_labels, 1e18 * bank, bank_labels)
    results = [
        loss_and_gradients(backend, *arguments, temperature=1e-5, denominator=denominator)
        for backend in ("triton", "dense")
    ]
    assert results[1][0] > 1e37
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    assert not any(made.isnan().any() for made in results[0])


@each_denominator
def test_means_of_large_terms_do_not_overflow(denominator):
    anchors, entries = torch.ones(1, 1), torch.full((9, 1), -3e37)
    entries[8] = 0.0
    arguments = (anchors, torch.tensor([0]), entries, torch.tensor([0] * 8 + [1]))
    loss = info_nce(*arguments, temperature=1.0, denominator=denominator, backend="triton")
    torch.testing.assert_close(loss, torch.tensor(3e37), rtol=1e-6, atol=0)


def test_a_loss_far_below_one_keeps_its_digits():
    """log(1 + e) for an e below the last digit of 1."""
    anchors = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    entries = torch.tensor([[1.0, 0.0], [-1.0, 0.1]])
    arguments = (anchors, torch.zeros(2, dtype=torch.int64), entries, torch.tensor([0, 1]))
    loss = info_nce(*arguments, temperature=0.1, backend="triton")
    assert float(loss) < 1e-7
    truth = info_nce(*cast(arguments, torch.float64), temperature=0.1, backend="dense")
    torch.testing.assert_close(loss.double(), truth, rtol=BOUND, atol=0)


@each_denominator
@pytest.mark.parametrize("pieces", ["bank", "itself", "several"])
def test_vectors_known_to_be_of_unit_length(pieces, denominator, monkeypatch):
    """No maximum is kept then; nothing else changes."""
    arguments = draw(pieces)
    plain = loss_and_gradients("triton", *arguments, denominator=denominator)
    seen = []

    def known(problem):
        problem = dataclasses.replace(problem, unit_length=True)
        seen.append(lay_out(problem).bounded)
        return losses(problem)

    losses = autograd.fused_losses
    monkeypatch.setattr(autograd, "fused_losses", known)
    bounded = loss_and_gradients("triton", *arguments, denominator=denominator)
    assert seen == [True]
    assert worst_error(bounded, plain) < BOUND


@each_denominator
def test_what_is_ignored_may_hold_anything(denominator):
    anchors, anchor_labels, pieces, piece_labels = draw("several")
    plain = loss_and_gradients(
        "triton", anchors, anchor_labels, pieces, piece_labels, denominator=denominator
    )
    for vectors_, names in zip((anchors, *pieces), (anchor_labels, *piece_labels), strict=True):
        if vectors_ is not None:
            vectors_[(names < 0) | (names == IGNORE)] = float("nan")
    spoiled = loss_and_gradients(
        "triton", anchors, anchor_labels, pieces, piece_labels, denominator=denominator
    )
    for made, expected in zip(spoiled, plain, strict=True):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_reductions_and_weights(reduction, weighted):
    arguments = draw("several")
    weight = torch.rand(45, dtype=torch.float64) if weighted else None
    upstream = torch.rand(45 if reduction == "none" else (), dtype=torch.float64)
    results = [
        loss_and_gradients(
            backend,
            *cast(arguments, dtype),
            upstream.to(dtype),
            reduction=reduction,
            weight=None if weight is None else weight.to(dtype),
        )
        for backend, dtype in (("triton", torch.float32), ("dense", torch.float64))
    ]
    assert worst_error(*results) < BOUND


def strided(tensor):
    """The same values in every way that memory can hold them."""
    wide = torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=2)
    yield wide[:, :, 0]
    yield tensor.T.contiguous().T
    yield torch.cat([tensor, tensor], dim=1)[:, tensor.shape[1] :]


@pytest.mark.parametrize("way", range(3))
def test_any_strides(way):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    plain = loss_and_gradients("triton", anchors, anchor_labels, bank, bank_labels)
    anchors, bank = list(strided(anchors))[way], list(strided(bank))[way]
    anchors, bank = anchors.requires_grad_(), bank.requires_grad_()
    loss = info_nce(anchors, anchor_labels, bank, bank_labels, backend="triton")
    made = [loss, *torch.autograd.grad(loss, (anchors, bank))]
    for one, expected in zip(made, plain, strict=True):
        assert torch.equal(one, expected)


def test_an_expanded_entry_and_an_expanded_upstream_gradient():
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    bank = bank[:1].expand(150, 5)
    loss = info_nce(
        anchors.requires_grad_(),
        anchor_labels,
        bank,
        bank_labels,
        backend="triton",
        reduction="none",
    )
    loss.sum().backward()
    expected = loss_and_gradients("triton", anchors, anchor_labels, bank.clone(), bank_labels)
    there = (loss > 0).sum()
    torch.testing.assert_close(anchors.grad / there, expected[1])


@each_denominator
@pytest.mark.parametrize("num_anchors", [0, 1])
@pytest.mark.parametrize("num_entries", [0, 1])
def test_next_to_nothing(num_anchors, num_entries, denominator):
    anchors, entries = torch.rand(num_anchors, 3), torch.rand(num_entries, 3)
    arguments = (
        anchors,
        torch.zeros(num_anchors, dtype=torch.int64),
        [entries, None],
        [torch.zeros(num_entries, dtype=torch.int64), None],
    )
    fused, _ = errors(arguments, denominator=denominator)
    assert fused < BOUND


@each_denominator
@pytest.mark.parametrize("what", ["no negative", "no positive", "no anchor"])
def test_rows_without(what, denominator):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    if what == "no negative":
        anchor_labels, bank_labels = torch.ones_like(anchor_labels), torch.ones_like(bank_labels)
    elif what == "no positive":
        bank_labels = torch.full_like(bank_labels, 9)
    else:
        anchor_labels = torch.full_like(anchor_labels, IGNORE)
    arguments = (anchors, anchor_labels, bank, bank_labels)
    made = loss_and_gradients("triton", *arguments, denominator=denominator)
    expected = loss_and_gradients("dense", *arguments, denominator=denominator)
    if what == "no negative" and denominator == "all":
        assert worst_error(made, expected) < BOUND
    else:
        assert all((one == 0).all() for one in (*made, *expected))


def test_labels_beyond_thirty_two_bits():
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    plain = loss_and_gradients("triton", anchors, anchor_labels, bank, bank_labels)
    moved = [
        torch.where((names >= 0) & (names != IGNORE), names << 40, names)
        for names in (anchor_labels, bank_labels)
    ]
    made = loss_and_gradients("triton", anchors, moved[0], bank, moved[1])
    assert all(torch.equal(one, other) for one, other in zip(made, plain, strict=True))


@each_denominator
@pytest.mark.parametrize("mining", [None, MININGS["semi-hard"]], ids=["everything", "semi-hard"])
def test_the_same_bits_every_time(denominator, mining):
    first, second = (
        loss_and_gradients(
            "triton",
            *draw("several"),
            denominator=denominator,
            mining=mining,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    passes = []
    for name in ("denominator_pass", "entries_pass"):
        original = getattr(fused, name)

        def noted(*arguments, _original=original, _name=name, **options):
            passes.append((_name, options.get("want_gradient")))
            return _original(*arguments, **options)

        monkeypatch.setattr(fused, name, noted)
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    anchors.requires_grad_()
    arguments = (anchors, anchor_labels, bank, bank_labels)
    with torch.no_grad():
        assert not info_nce(*arguments, backend="triton").requires_grad
    loss = info_nce(*arguments, backend="triton")
    bank.fill_(float("nan"))  # as an update between forward and backward might
    loss.backward()
    assert passes == [("denominator_pass", False), ("denominator_pass", True)]
    assert torch.isfinite(anchors.grad).all()


def test_overflow_of_a_scaled_loss_is_infinite():
    anchors, anchor_labels, bank, bank_labels = draw("bank", dtype=torch.float16)
    anchors.requires_grad_()
    loss = info_nce(anchors, anchor_labels, bank, bank_labels, temperature=0.01, backend="triton")
    (loss * 2.0**30).backward()
    assert anchors.grad.isinf().any()
    assert not anchors.grad.isnan().any()


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("with_bank", [False, True], ids=["batch", "bank"])
def test_modules(form, with_bank):
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(2, 6, 9, 9, generator=generator)
    classes = torch.randint(0, 3, (2, 9, 9), generator=generator)
    results = []
    for backend in ("triton", "tiled"):
        bank = MemoryBank(3, 6, pixel_slots=20, region_slots=4) if with_bank else None
        loss = form(bank=bank, backend=backend)
        emb = maps.clone().requires_grad_()
        for step in range(2):
            value = loss(emb, classes, generator=torch.Generator().manual_seed(step))
        results.append([value, *torch.autograd.grad(value, emb)])
    assert worst_error(*results) < BOUND


def test_compiled():
    def loss(anchors, anchor_labels, bank, bank_labels):
        contrast, names = [None, bank], [None, bank_labels]
        return info_nce(anchors, anchor_labels, contrast, names, backend="triton")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    anchors, *rest = draw("bank")
    anchors.requires_grad_()
    results = []
    for form in (compiled, loss):
        value = form(anchors, *rest)
        results.append([value, *torch.autograd.grad(value, anchors)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("strategy", [None, "hardest", "semi-hard"])
def test_opcheck(strategy):
    anchors, anchor_labels, bank, bank_labels = draw("bank", num_anchors=20)
    there = [names.masked_fill(names == IGNORE, -1) for names in (anchor_labels, bank_labels)]
    arguments = (
        anchors.requires_grad_(),
        there[0],
        [bank],
        [there[1]],
        [True, False],
        True,
        torch.tensor(11) if strategy == "semi-hard" else None,
        0.1,
        "negatives",
        torch.float32,
        False,
        True,
        strategy,
        0.5,
        4,
        3,
    )
    torch.library.opcheck(losses_operator, arguments)
