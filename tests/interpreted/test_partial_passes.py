"""The fused form in parts, as ranks that each hold a shard merge them."""

import pytest
import torch
from drawn import BOUND
from problems import DENOMINATORS, worst_error
from splits import SPLITS, expected_of, forward_in_parts

from pixcontrast._info_nce.fused.configurations import INTERPRETED, configurations_for, using
from pixcontrast._info_nce.fused.passes import FusedPasses


@pytest.mark.parametrize("unit_length", [True, False], ids=["bounded", "any length"])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("split", [(1,), (1, 2, 3), "in pairs", "one by one"])
def test_any_split_merges_to_the_same(split, denominator, unit_length):
    # The gradient of the anchors through themselves is left to the backward: not with piece 0.
    if isinstance(split, str):
        splits = [tuple(n for n in numbers if n) for numbers in SPLITS[split]]
    else:
        splits = [split]
    numbers = sorted(n for part in splits for n in part)
    options = {"denominator": denominator, "dtype": torch.float32, "unit_length": unit_length}
    losses, gradient, has_positive = expected_of_pieces(numbers, denominator)
    found = forward_in_parts(FusedPasses, splits, **options)
    assert worst_error([found.losses, found.anchor_gradient], [losses, gradient]) < BOUND
    assert torch.equal(found.has_positive, has_positive)


def expected_of_pieces(numbers, denominator):
    from pixcontrast._info_nce.tiled.passes import TiledPasses

    found = forward_in_parts(TiledPasses, [tuple(numbers)], denominator=denominator)
    return found.losses, found.anchor_gradient, found.has_positive


def test_losses_through_the_anchors_themselves():
    losses, _, has_positive = expected_of(denominator="negatives")
    found = forward_in_parts(FusedPasses, SPLITS["in pairs"], dtype=torch.float32)
    assert worst_error([found.losses], [losses]) < BOUND
    assert torch.equal(found.has_positive, has_positive)


def test_tiles_are_replaced_inside_and_nowhere_else():
    before = configurations_for(90, "16", 64)
    with using(INTERPRETED):
        assert configurations_for(90, "16", 64) == INTERPRETED
    assert configurations_for(90, "16", 64) == before
