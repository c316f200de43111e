"""The equation in parts: any split of the entries merges to what they all make together."""

import math

import pytest
import torch
from problems import DENOMINATORS, worst_error
from splits import SPLITS, expected_of, forward_in_parts

from pixcontrast._info_nce.results import (
    DenominatorPartial,
    PositivesPartial,
    merge_denominators,
    merge_positives,
)
from pixcontrast._info_nce.tiled.passes import TiledPasses


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
    means = merge_denominators(with_means).negative_mean
    assert means.tolist() == [[2.0, 2.0], [2.0, 2.0], [0.0, 0.0]]
