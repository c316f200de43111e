"""Draw pixels from groups, the pixels of one class in one image."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixcontrast._tensors import IGNORED, mark_ignored
from pixcontrast._triton import takes_kernels

_LABEL_BITS = 24
MAX_LABEL = (1 << _LABEL_BITS) - 1
"""The largest label that the sort key of (image, class) groups can hold."""

DRAW_BITS = 31


class SortedPixels(NamedTuple):
    """All n pixels, sorted by group, in random order within a group. Ignored pixels come last."""

    order: Tensor  # pixel at each position, (n,)
    keys: Tensor  # ascending sort keys: the group, followed by random bits, (n,)
    num_groups: int  # the group of ignored pixels
    random_bits: int

    def start_of(self, groups: Tensor) -> Tensor:
        """Return the first position of each group; for an empty group, that of the next group."""
        return torch.searchsorted(self.keys, groups << self.random_bits)

    def take_first(self, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` pixels of each of G groups, and which of them exist, (G, `count`) each.

        Missing pixels all have the same index, so that reading them is fast.
        """
        if takes_kernels(self.keys):
            from pixcontrast._pixels.group_kernels import take_first

            return take_first(self.keys, self.order, self.num_groups, count, self.random_bits)
        device = self.keys.device
        start = self.start_of(torch.arange(self.num_groups + 1, device=device))
        index = torch.arange(count, device=device)
        exists = index < start.diff()[:, None]
        positions = (start[:-1, None] + index).masked_fill(~exists, 0)
        return self.order[positions], exists


def sort_pixels(
    labels: Tensor,
    num_labels: int,
    draw: Tensor,
    draw_bits: int,
    *,
    usable: Tensor | None = None,
    other: Tensor | None = None,
    halves: bool = False,
    ignore_index: int = IGNORED,
) -> SortedPixels:
    """Sort n = B·P pixels by group and shuffle them within each group.

    The group of a pixel is image · `num_labels` + label. With `halves` each group has two halves,
    2 · group for pixels where `other` differs from the label, and 2 · group + 1 for the others.

    Args:
        labels (Tensor): integer labels, shape (B, P). Where no kernel runs they are marked int64.
        num_labels (int): larger labels are ignored.
        draw (Tensor): int64 random numbers in [0, 2 ** `draw_bits`), shape (n,).
        draw_bits (int): at least `DRAW_BITS`.
        usable (Tensor, optional): the pixels that are not ignored, shape (B, P). Default: all.
        other (Tensor, optional): integer labels, shape (B, P). Default: None, those of `labels`.
        halves (bool): whether groups have halves.
        ignore_index (int): label of ignored pixels.
    """
    num_groups = labels.shape[0] * num_labels * (1 + halves)
    random_bits = min(DRAW_BITS, 62 - num_groups.bit_length())
    if takes_kernels(labels):
        from pixcontrast._pixels.group_kernels import write_keys

        keys = write_keys(
            labels.contiguous(),
            (labels if other is None else other).contiguous(),
            None if usable is None else usable.contiguous(),
            draw,
            num_labels,
            num_groups,
            ignore_index,
            random_bits,
            draw_bits - random_bits,
            1 + halves,
        )
    else:
        first_group = torch.arange(0, labels.shape[0] * num_labels, num_labels, device=draw.device)
        groups = first_group[:, None] + labels
        if halves:
            last = torch.ones_like(labels, dtype=torch.bool) if other is None else other == labels
            groups = torch.add(last, groups, alpha=2)
        ignored = labels == IGNORED
        if usable is not None:
            ignored |= ~usable
        groups = groups.masked_fill(ignored, num_groups).flatten()
        keys = torch.add(draw >> (draw_bits - random_bits), groups, alpha=1 << random_bits)
    keys, order = keys.sort(stable=True)
    return SortedPixels(order, keys, num_groups, random_bits)


class DrawnGroups(NamedTuple):
    """A groups, some of which may not exist: these have size 0.

    Within a group, pixels marked `first` precede the others. Both parts are in random order.
    """

    order: Tensor  # pixel at each position, (n,)
    start: Tensor  # position of the first pixel of each group, ascending, (A,)
    size: Tensor  # number of pixels of each group, 0 if it does not exist, (A,)
    num_first: Tensor  # number of pixels marked `first`, (A,)


def draw_groups(
    labels: Tensor,
    preds: Tensor | None,
    max_groups: int,
    min_pixels: int,
    ignore_index: int,
    generator: torch.Generator | None,
) -> DrawnGroups:
    """Return all groups of at least `min_pixels` pixels, or a random A of them.

    A = min(max_groups, n), with n = B·P pixels. Positions and sizes of groups are found by binary
    search in the sorted keys, because a pass over all pixels takes longer. The pixels where `preds`
    (B, P) differs from `labels` (B, P) come first in their group; None: no pixel does. Labels above
    `MAX_LABEL` are ignored.
    """
    # One draw serves two purposes: the upper bits shuffle pixels, the lower bits select groups.
    draw = draw_integers(labels, 2 * DRAW_BITS, generator).flatten()
    num_labels, mask = MAX_LABEL + 1, (1 << DRAW_BITS) - 1
    options: dict[str, Any] = {"other": preds, "halves": True}
    if takes_kernels(labels):
        from pixcontrast._pixels.group_kernels import measure_groups, write_priorities

        options["ignore_index"] = ignore_index
        pixels = sort_pixels(labels, num_labels, draw, 2 * DRAW_BITS, **options)
        num_groups, bits = labels.shape[0] * num_labels, pixels.random_bits
        given = pixels.keys, draw, num_groups, min_pixels, bits + 1, mask
        start = _highest(write_priorities(*given), max_groups)[1].sort().values
        found = measure_groups(pixels.keys, start, num_groups, min_pixels, bits)
        return DrawnGroups(pixels.order, start, *found)
    marked = mark_ignored(labels, ignore_index, num_labels)
    pixels = sort_pixels(marked, num_labels, draw, 2 * DRAW_BITS, **options)
    group = pixels.keys >> (pixels.random_bits + 1)
    starts = _starts(group, labels.shape[0] * num_labels, min_pixels)
    priority, start = _highest(torch.where(starts, draw & mask, -1), max_groups)
    start, selected = start.sort()
    exists = priority[selected] >= 0

    half = group[start] << 1
    num_first = pixels.start_of(half + 1) - start
    size = pixels.start_of(half + 2) - start
    return DrawnGroups(pixels.order, start, size * exists, num_first * exists)


def _highest(priority: Tensor, max_groups: int) -> tuple[Tensor, Tensor]:
    """Select the A positions with the highest priority (n,); with fewer groups, all of them."""
    return priority.topk(min(max_groups, priority.numel()), sorted=False)


def share_of_class(
    groups: DrawnGroups, labels: Tensor, max_per_class: int, generator: torch.Generator | None
) -> Tensor:
    """Return the share of each group (A,) of `max_per_class`, the limit of pixels of one class.

    The groups of a class get equal shares. The remainder goes to a random choice of them.
    """
    label = labels.flatten()[groups.order[groups.start]].to(torch.int64)
    label = label.masked_fill(groups.size == 0, IGNORED)
    draw = draw_integers(label, DRAW_BITS, generator)
    keys, order = ((label << DRAW_BITS) + draw).sort(stable=True)
    first, end = (torch.searchsorted(keys, (label + i) << DRAW_BITS) for i in (0, 1))
    position = torch.arange(len(order), device=order.device)
    position = torch.empty_like(order).scatter_(0, order, position)
    num_groups = end - first
    return max_per_class // num_groups + (position - first < max_per_class % num_groups)


def take_pixels(
    groups: DrawnGroups,
    labels: Tensor,
    share: Tensor | None,
    chance: Tensor | None,
    hard_fraction: float,
    num_anchors: int,
    max_anchors: int,
    max_views: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Take first and other pixels of each group, and return their indices and labels (K,).

    Shapes must not depend on the counts, so compute the pixel of each of K anchors.

    Args:
        groups (DrawnGroups): A groups, whose hard pixels come first.
        labels (Tensor): integer labels of all pixels, shape (B, P).
        share (Tensor, optional): largest number of pixels of each group, shape (A,).
        chance (Tensor, optional): random numbers in [0, 1) that round the number of hard pixels,
            shape (A,); None: no pixel is hard.
        hard_fraction (float): fraction of hard pixels.
        num_anchors (int): K.
        max_anchors (int): number of anchors that the groups share.
        max_views (int): largest number of anchors of a group.
        ignore_index (int): label of padding, whose index is 0.
    """
    labels = labels.flatten()
    if takes_kernels(labels):
        from pixcontrast._pixels.group_kernels import take_groups

        limits = num_anchors, max_anchors, max_views, ignore_index
        return take_groups(groups, labels.contiguous(), share, chance, hard_fraction, *limits)
    num_groups = (groups.size > 0).sum()
    views = (max_anchors // num_groups.clamp(min=1)).clamp(1, max_views)
    taken = torch.minimum(groups.size, views)
    if share is not None:
        taken = torch.minimum(taken, share)
    stop = taken.cumsum(0)
    anchor = torch.arange(num_anchors, device=taken.device)
    group = torch.searchsorted(stop, anchor, right=True).clamp(max=len(stop) - 1)
    offset = anchor - (stop - taken)[group]
    if chance is not None:
        num_hard = (hard_fraction * taken + chance).to(torch.int64)
        num_easy = groups.size - groups.num_first
        num_hard = num_hard.maximum(taken - num_easy).minimum(groups.num_first)
        is_easy = offset >= num_hard[group]
        offset = offset + is_easy * (groups.num_first - num_hard)[group]
    padding = anchor >= stop[-1]
    position = (groups.start[group] + offset).masked_fill(padding, 0)
    indices = groups.order[position].masked_fill(padding, 0)
    taken_labels = labels[indices].to(torch.int64)
    return indices, taken_labels.masked_fill(padding, ignore_index)


def draw_integers(like: Tensor, bits: int, generator: torch.Generator | None) -> Tensor:
    """Draw random int64 in [0, 2 ** `bits`), in the shape and on the device of a tensor."""
    return torch.randint(1 << bits, like.shape, device=like.device, **source(generator))


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword arguments that make a random function draw from a generator.

    torch.compile does not support `generator=None` beside a symbolic size.
    """
    return {} if generator is None else {"generator": generator}


def _starts(group: Tensor, num_groups: int, min_pixels: int) -> Tensor:
    """Return where groups of at least `min_pixels` pixels start; `group` (n,) is ascending."""
    num_candidates = max(group.shape[0] - min_pixels + 1, 0)
    starts = torch.zeros(group.shape, dtype=torch.bool, device=group.device)
    starts[:num_candidates] = group[:num_candidates] == group[min_pixels - 1 :]
    starts[1:] &= group[1:] != group[:-1]
    return starts & (group < num_groups)
