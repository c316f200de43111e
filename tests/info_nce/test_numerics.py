"""Numbers at their ends, each within the error that its dtype allows: docs/numerics.md."""

import math

import pytest
import torch
from problems import DENOMINATORS, error_of_loss, labels, loss_and_gradients, vectors
from torch.nn import functional as F

from pixcontrast import HardNegativeSampler, PixelContrastLoss, RandomAnchorSampler
from pixcontrast.functional import info_nce

each_backend = pytest.mark.parametrize("backend", ["dense", "tiled"])
each_denominator = pytest.mark.parametrize("denominator", DENOMINATORS)
MILLION = 1_000_000


@each_backend
@pytest.mark.parametrize("count", [4, 2500])
def test_a_temperature_whose_inverse_is_no_float32(backend, count):
    """Zero vectors have similarities of 0 at any temperature."""
    given = torch.arange(count) % 2
    loss = info_nce(torch.zeros(count, 3), given, temperature=3e-39, backend=backend)
    assert float(loss) == pytest.approx(math.log(count // 2 + 1))


@each_backend
@each_denominator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.07, 1.0, 10.0, 100.0])
def test_any_temperature(backend, denominator, dtype, temperature):
    generator = torch.Generator().manual_seed(0)
    anchors, anchor_labels = vectors(40, 16, generator, dtype), labels(40, 4, generator)
    entries, entry_labels = vectors(120, 16, generator, dtype), labels(120, 5, generator)
    options = {"temperature": temperature, "denominator": denominator}
    given = [anchor_labels, [entries, None], [entry_labels, None]]
    actual = loss_and_gradients(backend, anchors, *given, **options)
    given[1] = [entries.double(), None]
    # In float64 the truth is the same formula, summed in another order.
    expected = loss_and_gradients("dense", anchors.double(), *given, **options)
    bound = error_of_loss(dtype, 16, 1 / temperature, 160)
    assert abs(float(actual[0]) - float(expected[0])) <= bound
    # A coefficient is off by twice its similarities' error, relatively; of it and its row's are
    # made sums of vectors of length 1, over τ.
    smallest = torch.finfo(dtype).smallest_normal
    for one, other in zip(actual[1:], expected[1:], strict=True):
        rounded = torch.finfo(dtype).eps * float(other.abs().max())
        off = float((one.double() - other).abs().max())
        assert off <= 2 * bound / temperature + rounded + smallest


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("exponent", [-66, -20, 20, 66])
def test_lengths_of_vectors_do_not_count(exponent, reduction):
    """1e-20 to 1e20, as powers of 2: the same bits, and the gradient over the length."""
    emb, given = torch.randn(2, 8, 6, 6), torch.randint(0, 3, (2, 6, 6))
    results = []
    for scale in (1.0, 2.0**exponent):
        leaf = (emb * scale).requires_grad_()
        loss = PixelContrastLoss(
            anchor_sampler=RandomAnchorSampler(max_anchors=40), reduction=reduction
        )
        value = loss(leaf, given, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        results.append((value.detach(), gradient * scale))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].abs().max() > 1e-4


@each_backend
@pytest.mark.parametrize("length", [1e-20, 1e-10, 1e10])
def test_vectors_as_they_are(backend, length):
    """Not normalised: similarities from 1e-39 to 1e21, beside float64."""
    generator = torch.Generator().manual_seed(0)
    anchors = (length * vectors(30, 8, generator)).float()
    given = torch.arange(30) % 3
    actual = loss_and_gradients(backend, anchors, given)
    expected = loss_and_gradients("dense", anchors.double(), given)
    similarity = length**2 / 0.1
    assert abs(float(actual[0]) - float(expected[0])) <= error_of_loss(
        torch.float32, 8, similarity, 60
    )
    # Similarities of 1e21 say who is largest, and their rounding says by how much.
    assert torch.isfinite(actual[1]).all()


@each_backend
@each_denominator
@pytest.mark.parametrize("length", [1e20, 3e38])
@pytest.mark.parametrize("mining", [None, HardNegativeSampler(strategy="hardest")])
def test_similarities_beyond_float32_saturate(backend, denominator, length, mining):
    anchors = torch.tensor([[length], [-length], [length], [0.0]])
    loss = info_nce(
        anchors, torch.tensor([0, 0, 1, 1]), denominator=denominator, reduction="none",
        backend=backend, negative_sampler=mining,
    )  # fmt: skip
    assert torch.isfinite(loss).all()
    assert loss.max() > 1e37


@each_backend
@each_denominator
def test_a_mean_whose_sum_is_beyond_float32(backend, denominator):
    """Ten positives lie opposite, each of them as far as a similarity can be."""
    anchors = torch.full((1, 4), 1e20)
    entries = torch.cat([-anchors.repeat(10, 1), anchors]).requires_grad_()
    entry_labels = torch.tensor([0] * 10 + [1])
    found = loss_and_gradients(
        backend, anchors, torch.tensor([0]), entries, entry_labels, denominator=denominator
    )
    largest = torch.finfo(torch.float32).max / 2
    torch.testing.assert_close(float(found[0]), largest, rtol=1e-5, atol=0)
    assert all(bool(torch.isfinite(one).all()) for one in found)


@each_backend
@each_denominator
@pytest.mark.parametrize("seed", range(5))
def test_similarities_whose_last_digit_is_beyond_exp(backend, denominator, seed):
    """Made in another tile they differ by thousands: no likelihood is above 1 for that."""
    generator = torch.Generator().manual_seed(seed)
    anchors, entries = torch.randn(39, 9, generator=generator).split((30, 9))
    anchor_labels = torch.randint(0, 4, (30,), generator=generator)
    entry_labels = torch.arange(9) % 3
    for count in (1, 9):
        found = loss_and_gradients(
            backend, anchors, anchor_labels, 1e20 * entries[:count], entry_labels[:count],
            denominator=denominator, temperature=0.5,
        )  # fmt: skip
        assert all(bool(torch.isfinite(one).all()) for one in found)
        if count == 1:  # each anchor has a positive or a negative, and none has both
            assert not any(bool(one.any()) for one in found)


@each_backend
@pytest.mark.parametrize("size", [65504.0, 255.0, 2.0**-14, 2.0**-24])
def test_float16_at_its_limits(backend, size):
    """The largest number, the smallest normal one and the smallest there is."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (12, 4), generator=generator) * 2.0 - 1
    anchors = (size * signs).half()
    given = torch.arange(12) % 3
    for temperature in (0.1, 100.0):
        actual = loss_and_gradients(backend, anchors, given, temperature=temperature)
        expected = loss_and_gradients("dense", anchors.double(), given, temperature=temperature)
        # Products of powers of 2 and of 65504 (11 bits) are exact, and so are their sums.
        similarity = 4 * size**2 / temperature
        bound = error_of_loss(torch.float32, 4, similarity, 24)
        assert abs(float(actual[0]) - float(expected[0])) <= bound
        largest = torch.finfo(torch.float16).max
        if float(expected[1].abs().max()) < largest:
            rounded = 2**-10 * float(expected[1].abs().max()) + 2**-23
            off = float((actual[1].double() - expected[1]).abs().max())
            assert off <= rounded + 2 * size / temperature * min(2 * bound, 1)
        assert not actual[1].isnan().any()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positives", [1, MILLION - 1])
def test_a_million_equal_similarities(backend, dtype, positives):
    """L = log(1 + number of negatives), whatever the similarity; and the gradients cancel."""
    anchors = torch.tensor([[0.6, 0.8]], dtype=dtype).requires_grad_()
    entries = anchors.detach().expand(MILLION, 2)
    given = torch.ones(MILLION, dtype=torch.int64)
    given[MILLION // 3 : MILLION // 3 + positives] = 0
    if positives > 1:
        given[:], given[7] = 0, 1
    loss = info_nce(anchors, torch.tensor([0]), entries, given, backend=backend)
    expected = math.log1p(MILLION - positives)
    # The loss is a sum of tiles, each of 4,096 terms at most.
    assert abs(float(loss.detach()) - expected) <= error_of_loss(torch.float32, 2, 10.0, 4096) / 8
    (gradient,) = torch.autograd.grad(loss, anchors)
    # Two sums of a length of 1 / τ that cancel, each rounded as the dtype is.
    terms = 4096 if backend == "tiled" else MILLION
    assert gradient.abs().max() <= 20 * (torch.finfo(dtype).eps + terms * 2**-24)


@each_backend
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_one_positive_among_a_million_negatives(backend, temperature):
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(2, 4, generator, torch.float32)
    entries = vectors(MILLION, 4, generator, torch.float32)
    given = torch.ones(MILLION, dtype=torch.int64)
    given[123_456] = 0
    options = {"temperature": temperature}
    arguments = (torch.zeros(2, dtype=torch.int64), entries, given)
    loss = info_nce(anchors, *arguments, backend=backend, **options)
    s = anchors.double() @ entries.double().T / temperature
    negative = s[:, given == 1].logsumexp(dim=1)
    expected = F.softplus(negative - s[:, 123_456]).mean()
    bound = error_of_loss(torch.float32, 4, 1 / temperature, 4096)
    assert abs(float(loss) - float(expected)) <= bound


@each_backend
@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.05, 0.1])
def test_perfectly_separated_classes(backend, temperature):
    """One direction a class: a loss of exp(−2/τ), to its own digits where float32 has it."""
    anchors = torch.tensor([[1.0, 0.0]] * 8 + [[-1.0, 0.0]] * 8, requires_grad=True)
    given = torch.arange(16) // 8
    loss = info_nce(anchors, given, temperature=temperature, backend=backend)
    expected = math.log1p(8 * math.exp(-2 / temperature))
    # Similarities are off by eps / τ, and their exponential by as much of itself. Below 1.2e-38 a
    # float32 has fewer digits, below 1e-45 none.
    relative = 8 * 2**-23 * (1 / temperature + 20)
    assert abs(float(loss.detach()) - expected) <= relative * expected + 1.2e-38
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert torch.isfinite(gradient).all()


@each_backend
@each_denominator
@pytest.mark.parametrize("temperature", [0.005, 0.1, 100.0])
def test_perfectly_mixed_classes(backend, denominator, temperature):
    """All vectors are one: what pulls is what pushes."""
    anchors = torch.tensor([[0.6, 0.8]] * 12, requires_grad=True)
    given = torch.arange(12) % 3
    loss = info_nce(
        anchors, given, temperature=temperature, denominator=denominator, backend=backend
    )
    expected = math.log(1 + 8) if denominator == "negatives" else math.log(11)
    bound = error_of_loss(torch.float32, 2, 1 / temperature, 24)
    assert abs(float(loss.detach()) - expected) <= bound
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert float(gradient.abs().max()) <= 2 * bound / temperature


@each_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_weight_of_0_takes_out_whatever_the_loss(backend, reduction):
    anchors = torch.eye(4)
    anchors[3] = torch.nan
    given = torch.tensor([0, 0, 1, 1])
    options = {"reduction": reduction, "backend": backend}
    loss = info_nce(
        anchors, given, torch.eye(4), given, weight=torch.tensor([1.0, 1, 1, 0]), **options
    )
    assert torch.isfinite(loss).all()
    assert loss.sum() > 0


@each_backend
@each_denominator
@pytest.mark.parametrize("temperature", [0.005, 1e-6])
def test_all_entries_lie_opposite(backend, denominator, temperature):
    """Similarities of −200 and −10⁶: their exponentials are 0, and only their ratio counts."""
    anchors = torch.tensor([[1.0, 0.0]], requires_grad=True)
    entries = torch.tensor([[-1.0, 0.0]]).repeat(9, 1)
    loss = info_nce(
        anchors,
        torch.tensor([0]),
        entries,
        torch.arange(9).clamp(max=1),
        temperature=temperature,
        denominator=denominator,
        backend=backend,
    )
    bound = error_of_loss(torch.float32, 2, 1 / temperature, 9)
    assert abs(float(loss.detach()) - math.log(9)) <= min(bound, 1.0)
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert torch.isfinite(gradient).all()


@each_backend
@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
def test_entries_beyond_the_range_of_the_anchors_dtype_saturate(backend, wide):
    """bfloat16 cannot represent the largest float16, and rounds it up beyond that range."""
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float16)
    entries = torch.tensor([[1e6, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=wide)
    given = (torch.tensor([0, 1, 0]), entries, torch.tensor([0, 1, 1]))
    loss = info_nce(anchors, *given, backend=backend)
    assert torch.isfinite(loss)
