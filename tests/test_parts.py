"""The equation in parts: any split of the entries merges to what they all make together."""

import math

import pytest
import torch
from problems import DENOMINATORS, IGNORE, labels, vectors, worst_error

from pixcontrast._info_nce.dense import dense_losses
from pixcontrast._info_nce.derivative import complete
from pixcontrast._info_nce.merge import OnlineSoftmax, merge_denominators, merge_positives
from pixcontrast._info_nce.problem import ContrastTensor, Problem
from pixcontrast._info_nce.results import DenominatorPartial, PositivesPartial
from pixcontrast._info_nce.tiled.passes import TiledPasses
from pixcontrast._labels import mark_ignored

CLASSES = 4


def problem_of(
    numbers=range(4), dtype=torch.float64, denominator="negatives", **options
) -> Problem:
    """Anchors, against some of: themselves, a piece of one class, one with nothing, another."""
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(13, 16, generator, dtype)
    anchor_labels = mark_ignored(labels(13, CLASSES, generator), IGNORE)
    pieces = [ContrastTensor(anchors, anchor_labels, True, 0)]
    for size in (9, 5, 21):
        entry_labels = mark_ignored(labels(size, CLASSES, generator), IGNORE)
        if size == 9:
            entry_labels[:] = 1
        if size == 5:
            entry_labels[:] = -1
        pieces.append(ContrastTensor(vectors(size, 16, generator, dtype), entry_labels, False, 0))
    return Problem(
        anchors=anchors,
        labels=anchor_labels,
        contrast=tuple(pieces[number] for number in numbers),
        temperature=0.1,
        denominator=denominator,
        negative_sampler=None,
        seed=None,
        product_dtype=dtype,
        compute_dtype=dtype,
        **options,
    )


def forward_in_parts(make_passes, splits, **options):
    """Losses and gradient of the anchors in their role as anchors, of parts that are merged."""
    parts = [make_passes(problem_of(numbers, **options)) for numbers in splits]
    denominator = merge_denominators([part.denominator(want_gradient=True) for part in parts])
    positives = merge_positives(
        [part.positives(denominator.lse, want_gradient=True) for part in parts]
    )
    return complete(problem_of(**options), denominator, positives)


def expected_of(**options):
    """The same by the textbook formula: entries are held fixed, also where they are anchors."""
    problem = problem_of(**options)
    anchors = problem.anchors.clone().requires_grad_()
    fixed = [
        ContrastTensor(piece.entries.detach(), piece.labels, False, 0)
        for piece in problem.contrast[1:]
    ]
    # Themselves as entries that are someone else's: all but oneself, one anchor at a time.
    losses, has_positive = [], []
    for i in range(len(anchors)):
        others = problem.labels.clone()
        others[i] = -1
        own = ContrastTensor(problem.anchors, others, False, 0)
        one = {**vars(problem), "anchors": anchors[i : i + 1], "labels": problem.labels[i : i + 1]}
        loss, there = dense_losses(Problem(**{**one, "contrast": (own, *fixed)}))
        losses.append(loss)
        has_positive.append(there)
    loss = torch.cat(losses)
    (gradient,) = torch.autograd.grad(loss.sum(), anchors)
    return loss.detach(), gradient, torch.cat(has_positive)


SPLITS = {
    "all at once": [(0, 1, 2, 3)],
    "one by one": [(0,), (1,), (2,), (3,)],
    "in pairs": [(0, 2), (1, 3)],
    "with nothing": [(), (0, 1, 2, 3), ()],
}


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_any_split_merges_to_the_same(split, denominator, small_tiles):
    losses, gradient, has_positive = expected_of(denominator=denominator)
    found = forward_in_parts(TiledPasses, SPLITS[split], denominator=denominator)
    assert worst_error([found.losses, found.anchor_gradient], [losses, gradient]) < 1e-13
    assert torch.equal(found.has_positive, has_positive)
    assert has_positive.any()
    assert not has_positive.all()


def test_a_single_positive_is_its_own_mean():
    """However many parts have nothing to say of it."""
    row, nothing = torch.tensor([2.0]), torch.zeros(1)
    one = PositivesPartial(torch.tensor([1]), row, 3 * row, row[:, None])
    none = PositivesPartial(torch.tensor([0]), nothing, nothing, nothing[:, None])
    for parts in ([one], [none, one], [one, none, none]):
        for found, expected in zip(merge_positives(parts), one, strict=True):
            assert torch.equal(found, expected)


def test_parts_of_which_exp_overflows():
    """And of which one says nothing of an anchor, or nothing at all of gradients."""
    large = torch.tensor([1000.0, -1000.0, -torch.inf])
    nothing = torch.full((3,), -torch.inf)
    parts = [DenominatorPartial(log_sum, None) for log_sum in (large, nothing, large)]
    for few, expected in ((parts[:1], large), (parts, large + math.log(2))):
        merged = merge_denominators(few)
        assert merged.negative_mean is None
        assert torch.equal(merged.lse, expected)
    with_means = [
        DenominatorPartial(part.lse, torch.full((3, 2), value))
        for part, value in zip(parts, (1.0, 5.0, 3.0), strict=True)
    ]
    assert merge_denominators(with_means).negative_mean.tolist() == [
        [2.0, 2.0],
        [2.0, 2.0],
        [0.0, 0.0],
    ]


@pytest.mark.parametrize("larger", [0, 1])
def test_halves_of_which_exp_overflows(larger):
    """The entries before a class and those after it, as rows of their own."""
    log_sums = torch.tensor([[1000.0, 3.0], [900.0, -1000.0]])
    means = torch.tensor([[[1.0], [5.0]], [[2.0], [7.0]]])
    if larger:
        log_sums, means = log_sums.flip(0), means.flip(0)
    partial = OnlineSoftmax(torch.zeros(4, 1), bounded=False, weighted=True)
    partial.add_partial(slice(0, 4), log_sums.flatten(), means.flatten(0, 1))
    partial.merge_halves()
    assert torch.equal(partial.lse(), torch.tensor([1000.0, 3.0]))
    assert partial.mean().tolist() == [[1.0], [5.0]]
