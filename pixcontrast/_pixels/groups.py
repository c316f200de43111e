"""Pixels sorted by group, in random order within each group. Samplers and bank draw from these."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixcontrast._tensors import IGNORED

_LABEL_BITS = 24
MAX_LABEL = (1 << _LABEL_BITS) - 1
"""The largest label that the sort key of (image, class) groups can hold."""

DRAW_BITS = 31


class SortedPixels(NamedTuple):
    """All n pixels, sorted by group, in random order within a group. Ignored pixels come last."""

    order: Tensor  # pixel at each position, (n,)
    keys: Tensor  # ascending sort keys: the group, followed by random bits, (n,)
    random_bits: int

    def start_of(self, groups: Tensor) -> Tensor:
        """Return the first position of each group. An empty group has that of the next one."""
        return torch.searchsorted(self.keys, groups << self.random_bits)


def sort_pixels(groups: Tensor, num_groups: int, draw: Tensor) -> SortedPixels:
    """Sort n pixels by group and shuffle them within each group.

    The groups (n,) are int64, at most 2 ** 61 of them; `num_groups` marks ignored pixels. `draw`
    (n,) is random int64 in [0, 2 ** `DRAW_BITS`).
    """
    random_bits = min(DRAW_BITS, 62 - num_groups.bit_length())
    draw = draw >> (DRAW_BITS - random_bits)
    keys, order = torch.add(draw, groups, alpha=1 << random_bits).sort(stable=True)
    return SortedPixels(order, keys, random_bits)


class DrawnGroups(NamedTuple):
    """At most A groups. A group is the pixels of one class in one image. Other groups have size 0.

    Within a group, pixels marked `first` precede the others. Both parts are in random order.
    """

    order: Tensor  # pixel at each position, (n,)
    start: Tensor  # position of the first pixel of each group, ascending, (A,)
    size: Tensor  # number of pixels of each group, 0 if it does not exist, (A,)
    num_first: Tensor  # number of pixels marked `first`, (A,)


def draw_groups(
    labels: Tensor,
    first: Tensor | None,
    max_groups: int,
    min_pixels: int,
    generator: torch.Generator | None,
) -> DrawnGroups:
    """Return all groups of at least `min_pixels` pixels, or a random A of them.

    A = min(max_groups, n). Apart from the sort, only a few passes over the n = B·P pixels are made:
    all other facts about a group are found by binary search in the sorted keys. Labels (B, P) are
    int64 up to `MAX_LABEL`, or `IGNORED`. The mask `first` (B, P) marks the pixels that come first
    in their group; None marks no pixel.
    """
    num_images, device = labels.shape[0], labels.device
    num_groups = num_images << _LABEL_BITS
    image = torch.arange(num_images, device=device)[:, None] << _LABEL_BITS
    last = torch.ones_like(labels, dtype=torch.bool) if first is None else ~first
    halves = torch.add(last, image + labels, alpha=2)
    halves = halves.masked_fill(labels == IGNORED, 2 * num_groups).flatten()
    # One draw serves two purposes: the upper bits shuffle pixels, the lower bits select groups.
    draw = torch.randint(1 << (2 * DRAW_BITS), halves.shape, device=device, **source(generator))
    pixels = sort_pixels(halves, 2 * num_groups, draw >> DRAW_BITS)

    group = pixels.keys >> (pixels.random_bits + 1)
    priority = draw & ((1 << DRAW_BITS) - 1)
    priority = priority.masked_fill(~_starts(group, num_groups, min_pixels), -1)
    # Select the A groups with the highest random priority; with fewer groups, all of them.
    priority, start = priority.topk(min(max_groups, labels.numel()), sorted=False)
    start, selected = start.sort()
    exists = priority[selected] >= 0

    half = group[start] << 1
    num_first = pixels.start_of(half + 1) - start
    size = pixels.start_of(half + 2) - start
    return DrawnGroups(pixels.order, start, size * exists, num_first * exists)


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword arguments that make a random function draw from a generator.

    torch.compile does not support `generator=None` beside a symbolic size.
    """
    return {} if generator is None else {"generator": generator}


def _starts(group: Tensor, num_groups: int, min_pixels: int) -> Tensor:
    """Return where a group of at least `min_pixels` pixels starts; `group` (n,) is ascending."""
    num_candidates = max(group.shape[0] - min_pixels + 1, 0)
    starts = torch.zeros(group.shape, dtype=torch.bool, device=group.device)
    starts[:num_candidates] = group[:num_candidates] == group[min_pixels - 1 :]
    starts[1:] &= group[1:] != group[:-1]
    return starts & (group < num_groups)
