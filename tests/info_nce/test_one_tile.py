"""Problems of a single tile, and those just too large for it, against the textbook in float64."""

import pytest
import torch
from problems import DENOMINATORS, IGNORE, labels, loss_and_gradients, vectors, worst_error
from torch.fx.experimental.proxy_tensor import make_fx

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce import dispatch
from pixcontrast._info_nce.tiled import complete_rows, one_tile
from pixcontrast.functional import info_nce


@pytest.fixture
def single(monkeypatch):
    """Whether each call was a single tile."""
    seen = []

    def compute(problem):
        losses = one_tile.one_tile_losses(problem)
        seen.append(losses is not None)
        return losses

    monkeypatch.setattr(dispatch, "one_tile_losses", compute)
    return seen


# Anchors, and entries beside the anchors themselves (0: none).
SHAPES = {
    (1, 3): True,
    (128, 0): True,
    (362, 0): True,  # the largest whose positives are not gathered
    (363, 0): True,
    (300, 77): True,
    (1024, 0): True,
    (2350, 0): True,  # a seventh is ignored
    (2500, 0): False,
    (255, 2048 - 255): True,
    (255, 2048 + 1500): False,
}


@pytest.mark.parametrize("classes", [2, 7])  # the positives of few classes are not gathered
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("shape", list(SHAPES), ids=str)
def test_sizes_around_the_limits(shape, denominator, dtype, classes, single):
    generator = torch.Generator().manual_seed(1)
    num_anchors, num_entries = shape
    anchors = vectors(num_anchors, 6, generator, torch.float64).to(dtype)
    entries = vectors(num_entries, 6, generator, torch.float64).to(dtype)
    anchor_labels, entry_labels = (
        labels(num_anchors, classes, generator),
        labels(num_entries, classes, generator),
    )
    upstream = torch.rand(num_anchors, generator=generator, dtype=torch.float64)
    given = anchor_labels, [None, entries], [None, entry_labels], upstream
    options = {"denominator": denominator, "reduction": "none", "temperature": 0.3}
    found = loss_and_gradients("tiled", anchors, *given, **options)
    exact = (
        anchors.double(),
        anchor_labels,
        [None, entries.double()],
        [None, entry_labels],
        upstream,
    )
    expected = loss_and_gradients("dense", *exact, **options)
    assert single == [SHAPES[shape]]
    eps = torch.finfo(torch.float32).eps
    assert worst_error(found[:1], expected[:1]) < (1e-13 if dtype == torch.float64 else 20 * eps)
    rounding = {torch.float64: 1e-12, torch.float32: 200 * eps}.get(dtype, torch.finfo(dtype).eps)
    assert worst_error(found[1:], expected[1:]) < rounding


@pytest.mark.parametrize("ungathered", [0, 1 << 20])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_ignored_vectors_are_not_read(value, denominator, ungathered, single, monkeypatch):
    """Nor have they, or anchors without a positive, a gradient other than an exact 0."""
    monkeypatch.setattr(complete_rows, "MAX_UNGATHERED", ungathered)
    monkeypatch.setattr(complete_rows, "MAX_GATHERED", 1.0)
    generator = torch.Generator().manual_seed(7)
    anchors, anchor_labels = vectors(30, 4, generator), labels(30, 3, generator)
    anchor_labels[4] = 70
    entries, entry_labels = vectors(50, 4, generator), labels(50, 3, generator)
    given = anchor_labels, [entries, None], [entry_labels, None]
    options = {"denominator": denominator}
    expected = loss_and_gradients("dense", anchors, *given, **options)
    for tensor, given_labels, gradient in zip(
        (anchors, entries), (anchor_labels, entry_labels), expected[1:], strict=True
    ):
        ignored = (given_labels < 0) | (given_labels == IGNORE)
        assert ignored.any()
        assert (gradient[ignored] == 0).all()
        tensor[ignored] = value
    found = loss_and_gradients("tiled", anchors, *given, **options)
    assert single == [True]
    assert worst_error(found, expected) < 1e-12
    for gradient, zero in zip(found[1:], expected[1:], strict=True):
        assert (gradient[zero == 0] == 0).all()


@pytest.mark.parametrize("ungathered", [0, 1 << 20])
@pytest.mark.parametrize("length", [1.0, 1e3, 1e19])
def test_no_negative_and_no_positive(length, ungathered, monkeypatch):
    """A loss of exactly 0 beside others, and never NaN, even where similarities saturate."""
    monkeypatch.setattr(complete_rows, "MAX_UNGATHERED", ungathered)
    monkeypatch.setattr(complete_rows, "MAX_GATHERED", 1.0)
    anchors = length * torch.nn.functional.normalize(torch.randn(6, 3), dim=1)
    for given in ([0, 0, 0, 0, 0, IGNORE], [0, 1, 2, 3, 4, 5]):
        leaf = anchors.clone().requires_grad_()
        losses = info_nce(leaf, torch.tensor(given), reduction="none")
        losses.sum().backward()
        assert (losses == 0).all()
        assert (leaf.grad == 0).all()
    losses = info_nce(anchors, torch.tensor([0, 0, 1, 1, 1, 2]), reduction="none")
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize(("dtype", "logit"), [(torch.float32, 39.9), (torch.float64, 299.9)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_similarities_at_the_bound(dtype, logit, sign, single):
    """Exponentials whose ratios are as large, or as small, as they can be."""
    anchors = torch.tensor([[1.0, 0.0], [-sign, 0.0]], dtype=dtype)
    entries = torch.tensor([[sign, 0.0]], dtype=dtype).repeat(2000, 1)
    names = torch.ones(2000, dtype=torch.int64)
    given = torch.tensor([0, 0]), [None, entries], [None, names]
    options = {"temperature": 1 / logit, "reduction": "sum"}
    found = loss_and_gradients("tiled", anchors, *given, **options)
    exact = given[0], [None, entries.double()], [None, names]
    expected = loss_and_gradients("dense", anchors.double(), *exact, **options)
    assert single == [True]
    assert worst_error(found, expected) < 200 * torch.finfo(dtype).eps


def test_a_weight_whose_product_with_1_over_tau_overflows_leaves_no_nan():
    anchors = torch.zeros(1, 3)
    entries = torch.eye(3).mul(1e3).requires_grad_()
    options = {"temperature": 0.005, "denominator": "all", "reduction": "sum"}
    weight = torch.tensor([1.5e38])
    info_nce(
        anchors, torch.tensor([1]), entries, torch.tensor([1, 0, 2]), weight=weight, **options
    ).backward()
    assert torch.equal(entries.grad, torch.zeros(3, 3))


def test_what_is_not_one_tile(single):
    anchors, some_labels = vectors(9, 4, torch.Generator()), torch.arange(9) % 3
    info_nce(anchors, some_labels, negative_sampler=HardNegativeSampler())
    info_nce(anchors, some_labels, [], [])
    info_nce(anchors[:0], some_labels[:0])
    assert single == [False, False, False]


def test_no_gradient_is_made_of_a_tile_where_none_is_wanted(monkeypatch):
    saved, save = [], one_tile._save_for_backward
    monkeypatch.setattr(
        one_tile, "_save_for_backward", lambda *a: saved.append(a[1].shape) or save(*a)
    )
    anchors, entries = (vectors(9, 4, torch.Generator()).requires_grad_() for _ in range(2))
    given = torch.arange(9) % 3, [None, entries], [None, torch.arange(9) % 2]
    with torch.no_grad():
        info_nce(anchors, *given)
    info_nce(anchors.detach(), given[0])
    assert not saved
    loss = info_nce(anchors.detach(), *given)
    assert saved == [(9, 18)]
    loss.backward()  # of the entries alone
    assert entries.grad.any()


def test_labels_far_apart(single):
    """Labels are compared, and are no index."""
    anchors = vectors(12, 4, torch.Generator().manual_seed(0))
    few = torch.arange(12) % 3
    far = torch.tensor([0, 1 << 40, (1 << 62) + 1])[few]
    found, expected = (
        loss_and_gradients("tiled", anchors, given, None, None) for given in (far, few)
    )
    assert single == [True, True]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("upstream", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(("count", "is_single"), [(12, True), (2500, False)])
def test_a_gradient_scaler_sees_an_overflow(single, upstream, count, is_single):
    """The gradient of a pair that is far apart is 0, and 0 times infinity must not become 0."""
    given = torch.arange(count) % 2
    anchors = torch.nn.functional.one_hot(given, 2).float().mul(9).requires_grad_()
    loss = info_nce(anchors, given, temperature=0.1, backend="tiled")
    loss.backward(torch.tensor(upstream))
    assert single == [is_single]
    assert not anchors.grad.isfinite().any()


def test_a_compiled_call_agrees(single):
    """The compiler is given the operators, which sort their tiles."""
    anchors = vectors(40, 6, torch.Generator().manual_seed(0), torch.float32).requires_grad_()
    given = torch.arange(40) % 3
    compiled = torch.compile(info_nce, fullgraph=True, backend="eager")
    results = []
    for function in (info_nce, compiled):
        loss = function(anchors, given)
        results.append([loss, *torch.autograd.grad(loss, anchors)])
    assert single[0]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_tracer_sees_one_operator():
    anchors, given = vectors(12, 4, torch.Generator().manual_seed(0)), torch.arange(12) % 3
    traced = make_fx(lambda anchors: info_nce(anchors, given))(anchors)
    assert "torch.ops.pixcontrast.losses" in traced.code
    torch.testing.assert_close(traced(anchors), info_nce(anchors, given))
