"""Pixels sorted by group, in random order inside each: what sampler and bank draw from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._labels import IGNORED

_LABEL_BITS = 24
MAX_LABEL = (1 << _LABEL_BITS) - 1
"""The largest label that the sort key of classes in images has room for."""

DRAW_BITS = 31


class SortedPixels(NamedTuple):
    """All n pixels, sorted by group, those of a group in random order; absent ones come last.

    Attributes:
        order: (n,) the number of the pixel at each place.
        keys: (n,) ascending; the group of the pixel at each place, above `random_bits` others.
        random_bits: how many.
    """

    order: Tensor
    keys: Tensor
    random_bits: int

    def start_of(self, groups: Tensor) -> Tensor:
        """The first place that a pixel of a group, or of a later one, stands at."""
        return torch.searchsorted(self.keys, groups << self.random_bits)


def sort_pixels(groups: Tensor, num_groups: int, draw: Tensor) -> SortedPixels:
    """Group and shuffle n pixels.

    Args:
        groups: (n,) int64 below `num_groups`; `num_groups` itself for pixels that take no part.
        num_groups: at most 2 ** 61.
        draw: (n,) random int64 in [0, 2 ** `DRAW_BITS`).
    """
    random_bits = min(DRAW_BITS, 62 - num_groups.bit_length())
    draw = draw >> (DRAW_BITS - random_bits)
    keys, order = torch.add(draw, groups, alpha=1 << random_bits).sort(stable=True)
    return SortedPixels(order, keys, random_bits)


class DrawnGroups(NamedTuple):
    """At most A groups, a group being the pixels of one class in one image; the others are empty.

    Inside a group those marked `first` come first; each of the two parts is in random order.

    Attributes:
        order: (n,) the number of the pixel at each place.
        start: (A,) ascending, the place of a group's first pixel.
        size: (A,) how many pixels it has; 0 for a group that does not exist.
        num_first: (A,) how many of them are marked `first`.
    """

    order: Tensor
    start: Tensor
    size: Tensor
    num_first: Tensor


def draw_groups(
    labels: Tensor,
    first: Tensor | None,
    most: int,
    min_pixels: int,
    generator: torch.Generator | None,
) -> DrawnGroups:
    """All groups of at least `min_pixels` pixels, or a random A = min(most, n) of them.

    Beyond the sort there are no more than a few passes over the n pixels: whatever else is asked
    about a group is searched for in the sorted keys.

    Args:
        labels: (B, P) int64 up to `MAX_LABEL`, or `IGNORED`; n = B·P of at least 1.
        first: (B, P) or None: nothing is marked.
        most: how many groups at most, at least 1.
        min_pixels: at least 1.
        generator: the source of randomness.
    """
    num_images, device = labels.shape[0], labels.device
    num_groups = num_images << _LABEL_BITS
    image = torch.arange(num_images, device=device)[:, None] << _LABEL_BITS
    last = torch.ones_like(labels, dtype=torch.bool) if first is None else ~first
    halves = torch.add(last, image + labels, alpha=2)
    halves = halves.masked_fill(labels == IGNORED, 2 * num_groups).flatten()
    # One draw for two purposes: its upper bits order the pixels, its lower bits are the lots.
    draw = torch.randint(1 << (2 * DRAW_BITS), halves.shape, generator=generator, device=device)
    pixels = sort_pixels(halves, 2 * num_groups, draw >> DRAW_BITS)

    group = pixels.keys >> (pixels.random_bits + 1)
    lots = (draw & ((1 << DRAW_BITS) - 1)).masked_fill(~_starts(group, num_groups, min_pixels), -1)
    # Groups draw lots, and at most A of them win: with fewer groups, all of them.
    lots, start = lots.topk(min(most, labels.numel()), sorted=False)
    start, winner = start.sort()
    exists = lots[winner] >= 0

    half = group[start] << 1
    num_first = pixels.start_of(half + 1) - start
    size = pixels.start_of(half + 2) - start
    return DrawnGroups(pixels.order, start, size * exists, num_first * exists)


def _starts(group: Tensor, num_groups: int, min_pixels: int) -> Tensor:
    """(n,) whether a group of at least `min_pixels` begins at a place; `group` ascends."""
    enough = max(group.shape[0] - min_pixels + 1, 0)
    starts = torch.zeros(group.shape, dtype=torch.bool, device=group.device)
    starts[:enough] = group[:enough] == group[min_pixels - 1 :]
    starts[1:] &= group[1:] != group[:-1]
    return starts & (group < num_groups)
