"""The contrast of a recipe: the loss, and its weight at each step."""

from __future__ import annotations

from typing import Literal, cast

from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.recipe import Recipe
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
)

Strategy = Literal["hardest", "semi-hard", "random"]
Denominator = Literal["negatives", "all"]


def make_criterion(recipe: Recipe, num_classes: int) -> PixelContrastLoss:
    """Make the contrast loss of a recipe that has one."""
    sampler = RandomAnchorSampler if recipe.anchors == "random" else HardAnchorSampler
    return PixelContrastLoss(
        temperature=recipe.temperature,
        base_temperature=recipe.base_temperature,
        ignore_index=IGNORE_INDEX,
        anchor_sampler=sampler(max_anchors=recipe.max_anchors, max_views=recipe.max_views),
        negative_sampler=_negative_sampler(recipe),
        bank=_bank(recipe, num_classes),
        contrast_with=recipe.sources,
        denominator=cast(Denominator, recipe.denominator),
    )


def contrast_weight(recipe: Recipe, step: int) -> float:
    """Compute the weight of the contrast at a step, with the recipe's warm-up and fade."""
    done = step / recipe.steps
    rising = min(1.0, done / recipe.warmup) if recipe.warmup > 0 else 1.0
    falling = min(1.0, (1 - done) / recipe.fade) if recipe.fade > 0 else 1.0
    return recipe.weight * min(rising, falling)


def _negative_sampler(recipe: Recipe) -> HardNegativeSampler | None:
    if recipe.negatives == "all":
        return None
    return HardNegativeSampler(
        strategy=cast(Strategy, recipe.negatives),
        num_negatives=recipe.num_negatives,
        num_positives=recipe.num_positives,
    )


def _bank(recipe: Recipe, num_classes: int) -> MemoryBank | None:
    """Make a bank with the queues that are read; an unused queue costs time."""
    if recipe.bank == 0:
        return None
    read = ("pixels", "regions") if recipe.sources is None else recipe.sources
    return MemoryBank(
        num_classes,
        recipe.dim,
        pixel_slots=recipe.bank if "pixels" in read else 0,
        region_slots=recipe.bank if "regions" in read else 0,
        pixels_per_image=recipe.pixels_per_image,
        ignore_index=IGNORE_INDEX,
    )
