"""The equation: dense against numbers made by hand, tiled against dense in float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import (
    DENOMINATORS,
    IGNORE,
    MININGS,
    by_hand,
    labels,
    loss_and_gradients,
    vectors,
    worst_error,
)
from torch.nn import functional as F

from pixcontrast._info_nce.operators import compute_losses
from pixcontrast._info_nce.tiled import similarities, tiles
from pixcontrast.functional import info_nce

BOUND = 1e-10  # relative, float64


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("same", [False, True], ids=["apart", "itself"])
def test_dense_is_the_equation(denominator, same):
    generator = torch.Generator().manual_seed(1)
    anchors, anchor_labels = vectors(23, 5, generator), labels(23, 4, generator)
    entries, entry_labels = vectors(31, 5, generator), labels(31, 4, generator)
    pieces = (None, None) if same else (entries, entry_labels)
    if same:
        entries, entry_labels = anchors, anchor_labels
    expected = by_hand(
        anchors, anchor_labels, entries, entry_labels, denominator=denominator, same=same
    )
    there = [loss for loss in expected if loss is not None]
    assert 5 < len(there) < 23

    options = {"denominator": denominator, "backend": "dense"}
    each = info_nce(anchors, anchor_labels, *pieces, reduction="none", **options)
    zeros = torch.tensor([loss or 0.0 for loss in expected], dtype=torch.float64)
    torch.testing.assert_close(each, zeros, rtol=1e-13, atol=1e-15)
    mean = info_nce(anchors, anchor_labels, *pieces, **options)
    torch.testing.assert_close(float(mean), sum(there) / len(there), rtol=1e-13, atol=0)
    total = info_nce(anchors, anchor_labels, *pieces, reduction="sum", **options)
    torch.testing.assert_close(float(total), sum(there), rtol=1e-13, atol=0)


@st.composite
def problem(draw):
    """A problem and its options: any sizes, orders, dtypes of labels, pieces, strides."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dim = draw(st.sampled_from([1, 2, 3, 8, 33, 320]))
    classes = draw(st.sampled_from([1, 2, 5, 19, 200]))
    num_anchors = draw(st.integers(0, 70))
    label_dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.int16]))

    def some(rows):
        made = vectors(rows, dim, generator)
        if draw(st.booleans()):  # not contiguous
            made = torch.stack([made, made], dim=2)[:, :, 0].T.contiguous().T
        order = labels(rows, classes, generator)
        return made, (order.sort().values if draw(st.booleans()) else order).to(label_dtype)

    anchors, anchor_labels = some(num_anchors)
    kind = draw(st.sampled_from(["itself", "one", "several"]))
    if kind == "itself":
        contrast = contrast_labels = None
    elif kind == "one":
        contrast, contrast_labels = some(draw(st.integers(0, 120)))
    else:
        pieces = [
            (None, None) if draw(st.booleans()) else some(draw(st.integers(0, 60)))
            for _ in range(draw(st.integers(0, 3)))
        ]
        contrast, contrast_labels = [p for p, _ in pieces], [p for _, p in pieces]
    reduction = draw(st.sampled_from(["mean", "sum", "none"]))
    weight = None
    if draw(st.booleans()):
        weight = torch.rand(num_anchors, generator=generator, dtype=torch.float64)
        weight[::3] = 0.0
    options = {
        "temperature": draw(st.sampled_from([0.03, 0.1, 1.0])),
        "denominator": draw(st.sampled_from(DENOMINATORS)),
        "reduction": reduction,
        "weight": weight,
    }
    shape = (num_anchors,) if reduction == "none" else ()
    upstream = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (anchors, anchor_labels, contrast, contrast_labels, upstream), options


def compare(arguments, options, mining=None):
    results = [
        loss_and_gradients(
            backend,
            *arguments,
            negative_sampler=mining,
            generator=torch.Generator().manual_seed(7),
            **options,
        )
        for backend in ("tiled", "dense")
    ]
    assert worst_error(*results) < BOUND


any_problem = given(problem())
with_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@any_problem
def test_tiled_equals_dense(arguments):
    compare(*arguments)


@pytest.mark.usefixtures("small_tiles")
@with_fixtures
@any_problem
def test_tiled_equals_dense_over_many_tiles(arguments):
    compare(*arguments)


@pytest.mark.usefixtures("small_tiles", "without_attention")
@with_fixtures
@any_problem
def test_tiled_equals_dense_where_pytorch_has_no_attention(arguments):
    compare(*arguments)


@pytest.mark.usefixtures("small_tiles", "unseen_values")
@with_fixtures
@any_problem
def test_tiled_equals_dense_where_values_must_not_be_seen(arguments):
    compare(*arguments)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", [name for name in MININGS if name != "everything"])
@with_fixtures
@any_problem
def test_tiled_equals_dense_under_mining(name, arguments):
    compare(*arguments, mining=MININGS[name])


@pytest.mark.usefixtures("small_tiles", "unseen_values")
@with_fixtures
@any_problem
def test_tiled_equals_dense_under_mining_where_values_must_not_be_seen(arguments):
    compare(*arguments, mining=MININGS["semi-hard"])


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("mining", MININGS.values(), ids=MININGS.keys())
def test_large_tiles_of_default_size(denominator, mining):
    generator = torch.Generator().manual_seed(5)
    anchors, anchor_labels = vectors(600, 16, generator), labels(600, 19, generator)
    entries, entry_labels = vectors(9000, 16, generator), labels(9000, 19, generator)
    bank = vectors(500, 16, generator), labels(500, 19, generator).sort().values
    arguments = (
        anchors,
        anchor_labels,
        [entries, None, bank[0]],
        [entry_labels, None, bank[1]],
        None,
    )
    compare(arguments, {"denominator": denominator}, mining)


@pytest.mark.usefixtures("sorted_tiles")
def test_attention_takes_what_needs_no_mask(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    anchors, anchor_labels = vectors(60, 16, generator), labels(60, 3, generator)
    entries, entry_labels = vectors(3000, 16, generator), torch.arange(3000) // 1000
    attended, attend = [], similarities.attend
    monkeypatch.setattr(
        tiles, "attend", lambda *a: attended.append(len(a[0]) * len(a[1])) or attend(*a)
    )
    arguments = (anchors, anchor_labels, entries, entry_labels)
    loss_and_gradients("tiled", *arguments)
    here = (anchor_labels[:, None] != entry_labels) & (anchor_labels >= 0)[:, None]
    here &= anchor_labels[:, None] != IGNORE
    assert sum(attended) == here.sum()
    attended.clear()
    with torch.no_grad():  # attention would make a gradient nobody asked for
        info_nce(*arguments, backend="tiled")
    assert not attended


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_long_classes_of_the_anchors_themselves(denominator):
    generator = torch.Generator().manual_seed(5)
    arguments = (vectors(40, 4, generator), torch.arange(40) // 20, None, None)
    results = [
        loss_and_gradients(backend, *arguments, denominator=denominator)
        for backend in ("tiled", "dense")
    ]
    assert worst_error(*results) < BOUND


STRIDES = {
    "in rows": lambda made: made,
    "in columns": lambda made: made.T.contiguous().T,
    "every other component": lambda made: made.repeat_interleave(2, dim=1)[:, ::2],
    "every other row": lambda made: made.repeat_interleave(2, dim=0)[::2],
    "one row": lambda made: made[:1].expand(made.shape),
    "rows that overlap": lambda made: made.flatten().as_strided(made.shape, (1, 1)),
}


@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES.keys())
def test_attention_of_entries_however_they_lie(stride):
    generator = torch.Generator().manual_seed(8)
    rows, entries = vectors(5, 4, generator), stride(vectors(40, 4, generator))
    if not similarities.can_attend(rows):
        pytest.skip("a PyTorch without attention for processors")
    log_sums, means = zip(*similarities.attend(rows, entries, 3.0), strict=True)
    log_sum = torch.stack(log_sums).logsumexp(dim=0)
    mean = (torch.stack(means) * (torch.stack(log_sums) - log_sum).exp()[..., None]).sum(dim=0)
    logits = 3.0 * rows @ entries.T
    torch.testing.assert_close(log_sum, logits.logsumexp(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, logits.softmax(dim=1) @ entries, rtol=1e-12, atol=1e-14)


def test_attention_leaves_alone_what_saturates():
    """It has no limit of its own: ∞ − ∞ would be NaN."""
    generator = torch.Generator().manual_seed(5)
    anchors, entries = vectors(30, 4, generator), vectors(3000, 4, generator)
    anchor_labels, entry_labels = labels(30, 3, generator), torch.arange(3000) // 1000
    arguments = (1e150 * anchors, anchor_labels, 1e150 * entries, entry_labels)
    losses = [
        loss_and_gradients(backend, *arguments, temperature=1e-10)[0]
        for backend in ("tiled", "dense")
    ]
    assert losses[1] > 1e300
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("attends", [True, False])
@pytest.mark.parametrize("length", [10.0, 1e3])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_vectors_of_any_length(length, denominator, attends, request):
    """Similarities too large for exp: the running maximum, to what their own rounding allows."""
    if not attends:
        request.getfixturevalue("without_attention")
    generator = torch.Generator().manual_seed(2)
    anchors, anchor_labels = length * vectors(40, 6, generator), labels(40, 5, generator)
    entries, entry_labels = vectors(90, 6, generator), labels(90, 5, generator)
    arguments = (anchors, anchor_labels, [entries, None], [entry_labels, None])
    results = [
        loss_and_gradients(backend, *arguments, denominator=denominator)
        for backend in ("tiled", "dense")
    ]
    rounding = torch.finfo(torch.float64).eps * length**2 / 0.1
    assert worst_error(*results) < 20 * rounding


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("mining", MININGS.values(), ids=MININGS.keys())
@pytest.mark.usefixtures("small_tiles")
def test_gradcheck(backend, denominator, mining):
    generator = torch.Generator().manual_seed(3)
    anchors = vectors(7, 4, generator).requires_grad_()
    entries = vectors(9, 4, generator).requires_grad_()
    anchor_labels = torch.tensor([0, 1, 2, 0, 1, IGNORE, -1])
    entry_labels = torch.tensor([0, 0, 1, 1, 2, 3, 2, IGNORE, 0])

    def loss(anchors, entries):
        return info_nce(
            anchors,
            anchor_labels,
            [entries, None],
            [entry_labels, None],
            temperature=0.5,
            denominator=denominator,
            reduction="none",
            negative_sampler=mining,
            generator=torch.Generator().manual_seed(1),
            backend=backend,
        )

    assert torch.autograd.gradcheck(loss, (anchors, entries))
    if backend == "dense" and mining is None:
        assert torch.autograd.gradgradcheck(loss, (anchors, entries))


@pytest.mark.parametrize("mining", [None, MININGS["hardest"]], ids=["everything", "hardest"])
@pytest.mark.parametrize("contrast", [None, "bank"])
def test_second_derivative_of_tiled_raises(mining, contrast):
    generator = torch.Generator().manual_seed(3)
    anchors, anchor_labels = vectors(9, 4, generator), torch.arange(9) % 3
    anchors.requires_grad_()
    pieces = (None, None) if contrast is None else (vectors(6, 4, generator), torch.arange(6) % 3)
    loss = info_nce(anchors, anchor_labels, *pieces, negative_sampler=mining, backend="tiled")
    (gradient,) = torch.autograd.grad(loss, anchors, create_graph=True)
    penalty = gradient.square().sum() + anchors.square().sum()
    with pytest.raises(RuntimeError, match='second derivative needs backend="dense"'):
        penalty.backward()


def test_vmap_runs_on_dense_and_raises_on_tiled():
    generator = torch.Generator().manual_seed(3)
    anchors, labels_of_three = vectors(15, 4, generator).view(3, 5, 4), torch.arange(5) % 2

    def loss(anchors, backend):
        return info_nce(anchors, labels_of_three, backend=backend)

    each = torch.stack([loss(part, "dense") for part in anchors])
    mapped = torch.func.vmap(lambda part: loss(part, "dense"))(anchors)
    torch.testing.assert_close(mapped, each)
    with pytest.raises(RuntimeError, match=r'torch\.func need backend="dense"'):
        torch.func.vmap(lambda part: loss(part, "tiled"))(anchors)
    with pytest.raises(RuntimeError, match=r'torch\.func need backend="dense"'):
        # Before anything is asked of the problem, or of other ranks.
        torch.func.vmap(lambda part: compute_losses(part))(anchors)


@pytest.mark.usefixtures("unseen_values")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mining", [None, MININGS["hardest"]], ids=["everything", "hardest"])
def test_what_takes_no_part_is_not_read_where_values_must_not_be_seen(value, mining):
    generator = torch.Generator().manual_seed(7)
    anchors, anchor_labels = vectors(30, 4, generator), labels(30, 3, generator)
    entries, entry_labels = vectors(50, 4, generator), labels(50, 3, generator)
    given = anchor_labels, [entries, None], [entry_labels, None]
    expected = loss_and_gradients("tiled", anchors, *given, negative_sampler=mining)
    for tensor, absent in ((anchors, anchor_labels), (entries, entry_labels)):
        is_absent = (absent < 0) | (absent == IGNORE)
        assert is_absent.any()
        tensor[is_absent] = value
    for found, same in zip(
        loss_and_gradients("tiled", anchors, *given, negative_sampler=mining), expected, strict=True
    ):
        assert torch.equal(found, same)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_single_anchor(denominator):
    """Of which the other entries are of its class, or not."""
    generator = torch.Generator().manual_seed(6)
    anchor, one_label = vectors(1, 4, generator), torch.tensor([2])
    entries = vectors(5, 4, generator)
    for entry_labels in ([2, 1, 2, 0, IGNORE], [2, 2, 2, 2, 2], [0, 1, 0, 1, 0]):
        options = {"temperature": 0.3, "denominator": denominator}
        tiled, dense = (
            loss_and_gradients(
                backend, anchor, one_label, [entries], [torch.tensor(entry_labels)], **options
            )
            for backend in ("tiled", "dense")
        )
        assert worst_error(tiled, dense) < BOUND


def test_ways_to_say_that_the_anchors_are_the_contrast():
    generator = torch.Generator().manual_seed(5)
    anchors, anchor_labels = vectors(9, 4, generator), labels(9, 3, generator)
    expected = info_nce(anchors, anchor_labels)
    for contrast in (([None],), ((None,), None), ([None], [None]), (None, None)):
        assert torch.equal(info_nce(anchors, anchor_labels, *contrast), expected)
    assert info_nce(anchors, anchor_labels, []) == info_nce(anchors, anchor_labels, [], []) == 0


@pytest.mark.parametrize("name", ["SupConLoss", "NTXentLoss"])
def test_other_libraries_agree(name):
    """For classes of equal size; they normalise inside, and loop over nothing but the batch."""
    from pytorch_metric_learning import losses

    generator = torch.Generator().manual_seed(4)
    anchors, anchor_labels = vectors(60, 16, generator), torch.arange(60) % 6
    entries, entry_labels = vectors(90, 16, generator), torch.arange(90) % 6
    reference = getattr(losses, name)(temperature=0.2)
    options = {
        "temperature": 0.2,
        "denominator": "all" if name == "SupConLoss" else "negatives",
    }
    for backend in ("dense", "tiled"):
        ours = info_nce(anchors, anchor_labels, backend=backend, **options)
        torch.testing.assert_close(ours, reference(anchors, anchor_labels), rtol=1e-8, atol=0)
        ours = info_nce(anchors, anchor_labels, entries, entry_labels, backend=backend, **options)
        theirs = reference(anchors, anchor_labels, ref_emb=entries, ref_labels=entry_labels)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0)


# PyTorch's import of its forward mode warns of torch.jit.script, since 2.15 by a FutureWarning.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:`?torch.jit:FutureWarning")
@pytest.mark.parametrize("num_anchors", [12, 1100])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("dual", ["anchors", "contrast"])
def test_forward_mode_runs_on_dense_and_raises_on_tiled(num_anchors, requires_grad, dual):
    generator = torch.Generator().manual_seed(1)
    anchors = vectors(num_anchors, 6, generator, torch.float64).requires_grad_(requires_grad)
    entries, names = vectors(9, 6, generator, torch.float64), torch.arange(9) % 3
    anchor_labels = torch.arange(num_anchors) % 3
    with torch.autograd.forward_ad.dual_level():
        given = {"anchors": anchors, "contrast": entries}
        tangent = torch.ones_like(given[dual])
        given[dual] = torch.autograd.forward_ad.make_dual(given[dual], tangent)

        def loss(backend):
            return info_nce(
                given["anchors"], anchor_labels, given["contrast"], names, backend=backend
            )

        assert torch.autograd.forward_ad.unpack_dual(loss("dense")).tangent is not None
        with pytest.raises(
            RuntimeError, match='forward-mode differentiation needs backend="dense"'
        ):
            loss("tiled")


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("num_pairs", [700, 1200])
def test_supcon_is_never_negative(backend, num_pairs):
    """Z and the similarity of a positive may come from products that are rounded differently."""
    generator = torch.Generator().manual_seed(0)
    entries = vectors(num_pairs, 64, generator, torch.float32)
    noise = torch.randn(entries.shape, generator=generator)
    anchors = F.normalize(entries + 0.1 * noise, dim=1)
    numbers = torch.arange(num_pairs)
    options = {"denominator": "all", "temperature": 0.01, "ignore_index": -1}
    losses = info_nce(
        anchors, numbers, entries, numbers, reduction="none", backend=backend, **options
    )
    assert losses.min() >= 0
    assert losses.max() < 1
