"""Triton kernels of the rings: append new entries, and label the slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._launch import launch_on
from pixcontrast._triton import ceil_div

ENTRIES = 8
"""Entries that a program writes."""
BLOCK, BLOCK_D = 1024, 256
"""Slots or flags that a program reads at a time, and components that it copies at a time."""


def append_entries(appends: Sequence[tuple[Tensor, ...]], shard: tuple[int, int]) -> None:
    """Append new entries to the rings of one or two queues, in one launch.

    Each is (vectors, counts, next positions) of the rings, with vectors (B, C, E, D) and their
    mask (B, C, E); see `ring.prepare_write`.
    """
    first, last = appends[0], appends[-1]
    # A program must not read what another one has replaced.
    previous = torch.stack([counter for append in appends for counter in append[1:3]])
    num_images, num_classes = first[4].shape[:2]
    most = max(append[4].shape[2] for append in appends)
    dim = first[0].shape[2]
    sizes = [(append[0].shape[1], append[4].shape[2]) for append in (first, last)]
    grid = (ceil_div(num_images * most, ENTRIES), num_classes, len(appends))
    rings_and_new = (
        tensor if index < 3 else tensor.contiguous()  # the rings are written in place
        for append in (first, last)
        for index, tensor in enumerate(append)
    )
    launch_on(
        previous,
        append_kernel,
        grid,
        *rings_and_new,
        *(previous, num_images, dim, *sizes[0], *sizes[1], *shard),
        BLOCK=BLOCK,
        BLOCK_D=BLOCK_D,
        ENTRIES=ENTRIES,
    )


def label_slots(counts: Tensor, num_slots: int, ignored: int) -> Tensor:
    """Return the class of each slot (C·slots,), `ignored` if it is not written."""
    labels = torch.empty(len(counts) * num_slots, dtype=torch.int64, device=counts.device)
    if labels.numel() > 0:
        launch_on(
            counts,
            labels_kernel,
            (ceil_div(labels.numel(), BLOCK),),
            *(counts, labels, labels.numel(), num_slots, ignored),
            BLOCK=BLOCK,
        )
    return labels


@triton.jit(
    do_not_specialize=[
        *("num_images", "dim", "slots", "num_new", "last_slots", "last_num_new"),
        *("rank", "num_shards"),
    ]
)
def append_kernel(
    vectors, counts, next_positions, new, valid,
    last_vectors, last_counts, last_next_positions, last_new, last_valid,
    previous, num_images, dim, slots, num_new, last_slots, last_num_new, rank, num_shards,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """Program (j, c, q) writes block j of the new entries of class c to the rings of queue q."""
    if tl.program_id(2) == 0:
        _append(
            vectors, counts, next_positions, new, valid, previous,
            num_images, dim, slots, num_new, rank, num_shards, BLOCK, BLOCK_D, ENTRIES,
        )  # fmt: skip
    else:
        _append(
            last_vectors, last_counts, last_next_positions, last_new, last_valid,
            previous + 2 * tl.num_programs(1),
            num_images, dim, last_slots, last_num_new, rank, num_shards, BLOCK, BLOCK_D, ENTRIES,
        )  # fmt: skip


@triton.jit
def _append(
    vectors, counts, next_positions, new, valid, previous,
    num_images, dim, slots, num_new, rank, num_shards,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    of_class = tl.program_id(1)
    num_classes = tl.num_programs(1)
    first = tl.program_id(0) * ENTRIES
    num_entries = num_images * num_new
    before = num_images * 0
    total = num_images * 0
    for chunk in range(0, num_entries, BLOCK):
        ids = chunk + tl.arange(0, BLOCK)
        flags = _flags(valid, ids, num_entries, num_new, num_classes, of_class).to(tl.int32)
        total += tl.sum(flags)
        before += tl.sum(tl.where(ids < first, flags, 0))
    ids = first + tl.arange(0, ENTRIES)
    flags = _flags(valid, ids, num_entries, num_new, num_classes, of_class)
    order = before + tl.cumsum(flags.to(tl.int32), 0) - 1
    length = slots.to(tl.int64) * num_shards
    next_position = tl.load(previous + num_classes + of_class)
    position = (next_position + order) % length
    # If there are more entries than positions, write only the newest: each position once.
    written = flags & (order >= total - length) & (position % num_shards == rank)
    row = of_class.to(tl.int64) * slots + position // num_shards
    entry = _entry(ids, num_new, num_classes, of_class)
    for chunk in range(0, dim, BLOCK_D):
        components = chunk + tl.arange(0, BLOCK_D)[None, :]
        mask = written[:, None] & (components < dim)
        values = tl.load(new + entry[:, None] * dim + components, mask=mask)
        target = vectors + row[:, None] * dim + components
        tl.store(target, values.to(vectors.dtype.element_ty), mask=mask)
    if tl.program_id(0) == 0:
        end = next_position + total
        # Before the ring is full, its valid slots are those below the next position.
        below = tl.minimum((end + num_shards - 1 - rank) // num_shards, slots)
        count = tl.load(previous + of_class)
        tl.store(counts + of_class, tl.minimum(tl.maximum(count, below), slots))
        tl.store(next_positions + of_class, end % length)


@triton.jit
def _entry(ids, num_new, num_classes, of_class):
    """Return the index into (B, C, E) of the entries of a class that are numbered over (B, E)."""
    image = (ids // num_new).to(tl.int64)
    return (image * num_classes + of_class) * num_new + ids % num_new


@triton.jit
def _flags(valid, ids, num_entries, num_new, num_classes, of_class):
    entry = _entry(ids, num_new, num_classes, of_class)
    return tl.load(valid + entry, mask=ids < num_entries, other=0) != 0


@triton.jit(do_not_specialize=["num_labels", "num_slots", "ignored"])
def labels_kernel(counts, labels, num_labels, num_slots, ignored: tl.int64, BLOCK: tl.constexpr):
    ids = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < num_labels
    of_class = ids // num_slots
    written = ids % num_slots < tl.load(counts + of_class, mask=inside, other=0)
    tl.store(labels + ids, tl.where(written, of_class, ignored), mask=inside)
