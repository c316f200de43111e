"""The fused form against the textbook form in float64: the loss and both gradients."""

import dataclasses

import pytest
import torch
from drawn import BOUND, cast, draw, each_denominator, errors
from problems import IGNORE, MININGS, loss_and_gradients, vectors, worst_error

from pixcontrast._info_nce import dispatch
from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast.functional import info_nce

# Each kind of contrast and each denominator; the other pairs are run by `pytest -m slow`.
each_contrast = pytest.mark.parametrize(
    ("pieces", "denominator"),
    [
        ("bank", "negatives"),
        ("itself", "negatives"),
        ("several", "negatives"),
        ("several", "all"),
        pytest.param("bank", "all", marks=pytest.mark.slow),
        pytest.param("itself", "all", marks=pytest.mark.slow),
    ],
)


@each_contrast
@pytest.mark.parametrize("mining", MININGS.values(), ids=MININGS.keys())
def test_fused_equals_dense(pieces, denominator, mining):
    fused, _ = errors(draw(pieces), denominator=denominator, negative_sampler=mining)
    assert fused < BOUND


@each_denominator
@pytest.mark.parametrize("written", [640, 500], ids=["full", "partly written"])
def test_a_sorted_bank_of_many_blocks(written, denominator):
    """Most blocks need no mask: those before the anchors' classes and those after them."""
    generator = torch.Generator().manual_seed(5)
    anchors, bank = vectors(70, 5, generator), vectors(640, 5, generator)
    bank_labels = torch.arange(640) // 128
    bank_labels[written:] = IGNORE
    arguments = cast((anchors, torch.arange(70) % 5, bank, bank_labels), torch.float32)
    fused, _ = errors(arguments, denominator=denominator)
    assert fused < BOUND


@pytest.mark.parametrize("dim", [1, 3, 16, 60, 64, 96, 123, 320])
def test_any_number_of_components(dim):
    fused, _ = errors(draw("several", num_anchors=20, dim=dim))
    assert fused < BOUND


def test_as_many_components_as_there_may_be():
    fused, _ = errors(draw("itself", num_anchors=10, dim=512))
    assert fused < BOUND


@each_contrast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
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
@pytest.mark.parametrize(
    ("length", "temperature"), [(1e-3, 0.1), (1.0, 0.02), (1.0, 5.0), (30.0, 0.02)]
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_any_length_and_temperature(length, temperature, denominator):
    """To what the rounding of the similarities themselves allows."""
    anchors, anchor_labels, *rest = draw("several")
    arguments = (length * anchors, anchor_labels, *rest)
    fused, _ = errors(arguments, temperature=temperature, denominator=denominator)
    rounding = torch.finfo(torch.float32).eps * length / temperature
    assert fused < BOUND + 20 * rounding


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


@pytest.mark.parametrize("mining", [None, MININGS["hardest"]], ids=["all", "mined"])
def test_a_second_backward_without_the_layout_of_the_forward(mining):
    anchors, labels, pieces, names = draw("several")
    leaves = [leaf.detach().requires_grad_() for leaf in (anchors, *pieces) if leaf is not None]
    given = iter(leaves)
    anchors, *pieces = (None if one is None else next(given) for one in (anchors, *pieces))
    loss = info_nce(anchors, labels, pieces, names, backend="triton", negative_sampler=mining)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, again in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert one.abs().max() > 0
        assert torch.equal(one, again)


@each_contrast
def test_vectors_known_to_be_of_unit_length(pieces, denominator, monkeypatch):
    """No maximum is kept then; nothing else changes."""
    arguments = draw(pieces)
    plain = loss_and_gradients("triton", *arguments, denominator=denominator)
    seen = []

    def known(problem):
        problem = dataclasses.replace(problem, unit_length=True)
        seen.append(lay_out(problem).bounded)
        return compute_losses(problem)

    compute_losses = dispatch.compute_losses
    monkeypatch.setattr(dispatch, "compute_losses", known)
    bounded = loss_and_gradients("triton", *arguments, denominator=denominator)
    assert seen == [True]
    assert worst_error(bounded, plain) < BOUND


@pytest.mark.parametrize("mining", [None, MININGS["hardest"]], ids=["all", "mined"])
def test_float64_entries_are_converted_before_the_kernels(mining, monkeypatch):
    """A tile of them does not fit in the shared memory of a GPU."""
    seen, compute_losses = [], dispatch.compute_losses

    def look(problem):
        seen.extend(problem.entries)
        return compute_losses(problem)

    monkeypatch.setattr(dispatch, "compute_losses", look)
    anchors, labels, entries, names = draw("bank")
    wide, names = entries.double(), names.clone()
    wide[0], names[0] = 1e300 * wide[0].sign(), IGNORE
    wide.requires_grad_()
    options = {"ignore_index": IGNORE, "negative_sampler": mining}
    loss = info_nce(anchors, labels, wide, names, backend="triton", **options)
    (gradient,) = torch.autograd.grad(loss, wide)
    truth = info_nce(anchors, labels, wide, names, backend="dense", **options)
    (expected,) = torch.autograd.grad(truth, wide)
    assert seen[0].dtype == torch.float32
    assert torch.isfinite(seen[0]).all()
    assert gradient.dtype == torch.float64
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
