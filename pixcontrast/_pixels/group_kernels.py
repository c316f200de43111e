"""Triton kernels around the sorts of `groups.py`, which describes what each of them computes.

Each function launches one kernel, on contiguous tensors of one device. The results are equal to
those of the PyTorch operations in `groups.py`.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._launch import launch_on
from pixcontrast._triton import ceil_div

BLOCK = 1024
"""Pixels or groups that a program reads at a time."""
GROUPS, VIEWS = 32, 16
"""Groups of a program that writes pixels, and pixels of a group that it writes at a time."""


def write_keys(
    labels: Tensor,
    other: Tensor,
    usable: Tensor | None,
    draw: Tensor,
    num_labels: int,
    num_groups: int,
    ignore_index: int,
    random_bits: int,
    draw_shift: int,
    num_halves: int,
) -> Tensor:
    """Return the sort keys (n,) of pixels with labels (B, P) and random numbers `draw` (n,).

    The group of a pixel is image · `num_labels` + label, or `num_groups` if it is ignored. With two
    halves it is twice that, plus 1 unless `other` (B, P) differs from the label.
    """
    keys = torch.empty_like(draw)
    launch_on(
        draw,
        keys_kernel,
        (ceil_div(draw.numel(), BLOCK),),
        *(labels, other, usable, draw, keys, labels.shape[1], draw.numel(), num_labels),
        *(num_groups, ignore_index, random_bits, draw_shift, num_halves),
        BLOCK=BLOCK,
    )
    return keys


def write_priorities(
    keys: Tensor, draw: Tensor, num_groups: int, min_pixels: int, shift: int, draw_mask: int
) -> Tensor:
    """Return `draw & draw_mask` (n,) where a group of at least `min_pixels` starts, else −1.

    The group of a key is `key >> shift`.
    """
    priorities = torch.empty_like(draw)
    launch_on(
        draw,
        priorities_kernel,
        (ceil_div(draw.numel(), BLOCK),),
        *(keys, draw, priorities, draw.numel(), num_groups, min_pixels, shift, draw_mask),
        BLOCK=BLOCK,
    )
    return priorities


def measure_groups(
    keys: Tensor, start: Tensor, num_groups: int, min_pixels: int, random_bits: int
) -> tuple[Tensor, Tensor]:
    """Return size and number of first pixels of the groups that begin at positions `start` (A,).

    Both are 0 where no group of at least `min_pixels` starts.
    """
    size, num_first = torch.empty_like(start), torch.empty_like(start)
    launch_on(
        start,
        measure_kernel,
        (ceil_div(start.numel(), GROUPS),),
        *(keys, start, size, num_first, keys.numel(), start.numel(), num_groups, min_pixels),
        *(random_bits, keys.numel().bit_length()),
        BLOCK=GROUPS,
    )
    return size, num_first


def take_groups(
    groups: tuple[Tensor, Tensor, Tensor, Tensor],
    labels: Tensor,
    share: Tensor | None,
    chance: Tensor | None,
    hard_fraction: float,
    num_anchors: int,
    max_anchors: int,
    max_views: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Return indices and labels (K,) of the pixels that are taken from a `DrawnGroups`."""
    indices = torch.empty(num_anchors, dtype=torch.int64, device=labels.device)
    taken_labels = torch.empty_like(indices)
    num_groups = groups[1].numel()
    # A kernel takes floating point arguments in float32, which would round the fraction.
    (hard_bits,) = struct.unpack("<q", struct.pack("<d", hard_fraction))
    launch_on(
        labels,
        take_kernel,
        (ceil_div(num_groups, GROUPS),),
        *(*groups, labels, share, chance, indices, taken_labels, num_groups, num_anchors),
        *(max_anchors, max_views, hard_bits, ignore_index),
        CHUNK=BLOCK,
        BLOCK=GROUPS,
        VIEWS=VIEWS,
        enable_fp_fusion=False,  # it would round another way
    )
    return indices, taken_labels


def take_first(
    keys: Tensor, order: Tensor, num_groups: int, num_taken: int, random_bits: int
) -> tuple[Tensor, Tensor]:
    """Return the first `num_taken` pixels of each of G groups, and which of them exist.

    Both have shape (G, `num_taken`).
    """
    indices = torch.empty(num_groups, num_taken, dtype=torch.int64, device=keys.device)
    valid = torch.empty_like(indices, dtype=torch.bool)
    launch_on(
        keys,
        first_kernel,
        (ceil_div(num_groups, GROUPS),),
        *(keys, order, indices, valid, keys.numel(), num_groups, num_taken, random_bits),
        keys.numel().bit_length(),
        BLOCK=GROUPS,
        VIEWS=VIEWS,
    )
    return indices, valid


@triton.jit(
    do_not_specialize=[
        *("num_pixels", "num_keys", "num_labels", "num_groups", "ignore_index"),
        *("random_bits", "draw_shift", "num_halves"),
    ]
)
def keys_kernel(
    labels, other, usable, draw, keys, num_pixels, num_keys,
    num_labels: tl.int64, num_groups: tl.int64, ignore_index: tl.int64,
    random_bits, draw_shift, num_halves, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < num_keys
    label = tl.load(labels + pixel, mask=inside, other=0).to(tl.int64)
    ignored = (label < 0) | (label == ignore_index) | (label >= num_labels)
    if usable is not None:
        ignored |= tl.load(usable + pixel, mask=inside, other=0) == 0
    group = pixel // num_pixels * num_labels + label
    last = (tl.load(other + pixel, mask=inside, other=0).to(tl.int64) == label) & (num_halves > 1)
    group = group * num_halves + last.to(tl.int64)
    group = tl.where(ignored, num_groups, group)
    random = tl.load(draw + pixel, mask=inside, other=0) >> draw_shift
    tl.store(keys + pixel, (group << random_bits) + random, mask=inside)


@triton.jit(do_not_specialize=["num_keys", "num_groups", "min_pixels", "shift", "draw_mask"])
def priorities_kernel(
    keys, draw, priorities, num_keys, num_groups: tl.int64, min_pixels: tl.int64, shift,
    draw_mask: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    starts = _starts_group(keys, position, num_keys, num_groups, min_pixels, shift)
    inside = position < num_keys
    priority = tl.load(draw + position, mask=inside, other=0) & draw_mask
    tl.store(priorities + position, tl.where(starts, priority, -1), mask=inside)


@triton.jit(
    do_not_specialize=[
        *("num_keys", "num_starts", "num_groups", "min_pixels", "random_bits", "num_steps")
    ]
)
def measure_kernel(
    keys, start, size, num_first, num_keys, num_starts, num_groups: tl.int64, min_pixels: tl.int64,
    random_bits, num_steps, BLOCK: tl.constexpr,
):  # fmt: skip
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < num_starts
    position = tl.load(start + ids, mask=inside, other=0)
    exists = _starts_group(keys, position, num_keys, num_groups, min_pixels, random_bits + 1)
    half = tl.load(keys + position, mask=inside, other=0) >> (random_bits + 1) << 1
    first = search_sorted(keys, num_keys, (half + 1) << random_bits, num_steps) - position
    both = search_sorted(keys, num_keys, (half + 2) << random_bits, num_steps) - position
    tl.store(num_first + ids, tl.where(exists, first, 0), mask=inside)
    tl.store(size + ids, tl.where(exists, both, 0), mask=inside)


@triton.jit(
    do_not_specialize=[
        *("num_groups", "num_anchors", "max_anchors", "max_views", "hard_bits", "ignore_index")
    ]
)
def take_kernel(
    order, start, size, num_first, labels, share, chance, indices, taken_labels, num_groups,
    num_anchors, max_anchors: tl.int64, max_views: tl.int64, hard_bits: tl.int64,
    ignore_index: tl.int64, CHUNK: tl.constexpr, BLOCK: tl.constexpr, VIEWS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    found = num_groups * 0
    for chunk in range(0, num_groups, CHUNK):
        ids = chunk + tl.arange(0, CHUNK)
        found += tl.sum((tl.load(size + ids, mask=ids < num_groups, other=0) > 0).to(tl.int32))
    views = tl.minimum(tl.maximum(max_anchors // tl.maximum(found, 1), 1), max_views)
    before = views * 0
    total = views * 0
    for chunk in range(0, num_groups, CHUNK):
        ids = chunk + tl.arange(0, CHUNK)
        taken = _num_taken(size, share, ids, ids < num_groups, views)
        total += tl.sum(taken)
        before += tl.sum(tl.where(ids < block * BLOCK, taken, 0))
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < num_groups
    taken = _num_taken(size, share, ids, inside, views)
    first_anchor = before + tl.cumsum(taken, 0) - taken
    first = tl.load(num_first + ids, mask=inside, other=0)
    num_hard = taken * 0
    if chance is not None:
        added = tl.load(chance + ids, mask=inside, other=0.0).to(tl.float64)
        fraction = (taken * 0 + hard_bits).to(tl.float64, bitcast=True)
        num_hard = (fraction * taken.to(tl.float64) + added).to(tl.int64)
        num_easy = tl.load(size + ids, mask=inside, other=0) - first
        num_hard = tl.minimum(tl.maximum(num_hard, taken - num_easy), first)
    position = tl.load(start + ids, mask=inside, other=0)
    for view in range(0, tl.max(taken, 0), VIEWS):
        view_ids = view + tl.arange(0, VIEWS)[None, :]
        is_taken = view_ids < taken[:, None]
        offset = view_ids + tl.where(view_ids < num_hard[:, None], 0, (first - num_hard)[:, None])
        pixel = tl.load(order + position[:, None] + offset, mask=is_taken, other=0)
        label = tl.load(labels + pixel, mask=is_taken, other=0).to(tl.int64)
        anchor = first_anchor[:, None] + view_ids
        is_taken &= anchor < num_anchors
        tl.store(indices + anchor, pixel, mask=is_taken)
        tl.store(taken_labels + anchor, label, mask=is_taken)
    for chunk in range(block * CHUNK, num_anchors, tl.num_programs(0) * CHUNK):
        anchor = chunk + tl.arange(0, CHUNK)
        is_padding = (anchor >= total) & (anchor < num_anchors)
        tl.store(indices + anchor, anchor.to(tl.int64) * 0, mask=is_padding)
        tl.store(taken_labels + anchor, anchor.to(tl.int64) * 0 + ignore_index, mask=is_padding)


@triton.jit(do_not_specialize=["num_keys", "num_groups", "num_taken", "random_bits", "num_steps"])
def first_kernel(
    keys, order, indices, valid, num_keys, num_groups, num_taken, random_bits, num_steps,
    BLOCK: tl.constexpr, VIEWS: tl.constexpr,
):  # fmt: skip
    ids = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    start = search_sorted(keys, num_keys, ids << random_bits, num_steps)
    size = search_sorted(keys, num_keys, (ids + 1) << random_bits, num_steps) - start
    for view in range(0, num_taken, VIEWS):
        view_ids = view + tl.arange(0, VIEWS)[None, :]
        exists = view_ids < size[:, None]
        # Missing pixels all have the same index, so that reading them is fast.
        pixel = tl.load(order + tl.where(exists, start[:, None] + view_ids, 0))
        stored = ids[:, None] * num_taken + view_ids
        inside = (ids < num_groups)[:, None] & (view_ids < num_taken)
        tl.store(indices + stored, pixel, mask=inside)
        tl.store(valid + stored, exists, mask=inside)


@triton.jit
def _starts_group(keys, position, num_keys, num_groups, min_pixels, shift):
    """Return whether a group of at least `min_pixels` pixels starts at a position."""
    last = position + min_pixels - 1
    inside = last < num_keys
    group = tl.load(keys + position, mask=inside, other=0) >> shift
    before = tl.load(keys + position - 1, mask=inside & (position > 0), other=-1) >> shift
    same = tl.load(keys + last, mask=inside, other=0) >> shift == group
    return inside & (before != group) & same & (group < num_groups)


@triton.jit
def search_sorted(keys, num_keys, target, num_steps, DESCENDING: tl.constexpr = False):
    """Return the number of ascending keys below each target, by bisection; of descending, above."""
    low = target * 0
    high = low + num_keys
    for _ in range(num_steps):
        middle = (low + high) // 2
        searching = low < high
        key = tl.load(keys + middle, mask=searching, other=0)
        before = key > target if DESCENDING else key < target
        low = tl.where(searching & before, middle + 1, low)
        high = tl.where(searching & (before == 0), middle, high)
    return low


@triton.jit
def _num_taken(size, share, ids, inside, views):
    """Return the number of pixels to take from each group."""
    taken = tl.minimum(tl.load(size + ids, mask=inside, other=0), views)
    if share is not None:
        taken = tl.minimum(taken, tl.load(share + ids, mask=inside, other=0))
    return taken
