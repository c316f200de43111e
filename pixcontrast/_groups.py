"""The pixels of each class in each image, in random order: one sort serves sampler and bank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._labels import ABSENT

_LABEL_BITS = 24
MAX_LABEL = (1 << _LABEL_BITS) - 1
"""The largest label that the sort key has room for."""


class RankedPixels(NamedTuple):
    """All n = B·P pixels, sorted by group; a group is the pixels of one class in one image.

    Inside a group those marked `first` come first; each of the two parts is in random order.
    Shapes depend on n alone: there are n places for groups, most of them empty.

    Attributes:
        order: (n,) the number of the pixel at each place.
        present: (n,) whether the pixel at each place takes part at all.
        group: (n,) the number of the group at each place.
        rank: (n,) the place inside its group.
        size: (n,) how many pixels each group has; 0 for places of groups that do not exist.
        num_first: (n,) how many of them are marked `first`.
    """

    order: Tensor
    present: Tensor
    group: Tensor
    rank: Tensor
    size: Tensor
    num_first: Tensor


def rank_pixels(
    labels: Tensor, first: Tensor | None, generator: torch.Generator | None
) -> RankedPixels:
    """Group and shuffle pixels by their labels (B, P), int64 up to `MAX_LABEL` or `ABSENT`."""
    num_images, n, device = labels.shape[0], labels.numel(), labels.device
    random_bits = 62 - _LABEL_BITS - max(num_images - 1, 0).bit_length()
    is_last = torch.ones_like(labels) if first is None else (~first).to(torch.int64)
    image = torch.arange(num_images, device=device)[:, None]
    group_key = (image << _LABEL_BITS) + labels
    draw = torch.randint(1 << random_bits, labels.shape, generator=generator, device=device)
    key = (((group_key << 1) + is_last) << random_bits) + draw
    key = key.masked_fill(labels == ABSENT, torch.iinfo(torch.int64).max).flatten()

    key, order = key.sort(stable=True)
    present = key != torch.iinfo(torch.int64).max
    group_key = key >> (random_bits + 1)
    group = torch.zeros_like(order)
    group[1:] = (group_key[1:] != group_key[:-1]).cumsum(0)

    size = _sum_by_group(present, group)
    num_first = _sum_by_group(present & ((key >> random_bits) & 1 == 0), group)
    start = size.cumsum(0) - size
    rank = torch.arange(n, device=device) - start[group]
    return RankedPixels(order, present, group, rank, size, num_first)


def _sum_by_group(marked: Tensor, group: Tensor) -> Tensor:
    # Integers: the result is the same in whatever order they are added.
    return torch.zeros_like(group).scatter_add_(0, group, marked.to(torch.int64))
