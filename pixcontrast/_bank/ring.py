"""Ring buffers, one for each class, written by a fixed sequence of operations of fixed shapes.

A write has two steps: `prepare_write` computes all values, and `write_all` changes the buffers.

A ring can be spread over W shards with the same number of slots. Position p of the whole ring,
counted from 0, is slot p // W of shard p mod W. Each shard is written separately, from the entries
of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._triton import takes_kernels

QUEUES = ("pixels", "regions")
BUFFERS = {
    "pixels": ("pixels", "pixel_count", "pixel_next"),
    "regions": ("regions", "region_count", "region_next"),
}
"""Names of the buffers of each queue, in the order of the fields of `Rings`."""


class Shard(NamedTuple):
    """Index `rank` of a shard, out of `size` shards of a ring."""

    rank: int
    size: int


WHOLE = Shard(0, 1)


class Rings(NamedTuple):
    """The rings of all classes."""

    vectors: Tensor  # stored embeddings, (C, slots, D)
    counts: Tensor  # int64 number of valid slots, (C,)
    next_positions: Tensor  # int64 position in the whole ring that is written next, (C,)

    def labels(self, ignored: int) -> Tensor:
        """Return the class of each slot, (C·slots,); `ignored` if the slot is not written."""
        num_classes, slots, _ = self.vectors.shape
        if takes_kernels(self.counts):
            from pixcontrast._bank.ring_kernels import label_slots

            return label_slots(self.counts, slots, ignored)
        written = torch.arange(slots, device=self.counts.device) < self.counts[:, None]
        classes = torch.arange(num_classes, device=self.counts.device)[:, None]
        return torch.where(written, classes, ignored).flatten()


class RingWrite(NamedTuple):
    """A prepared write to the rows and the counters of one queue."""

    rows: Tensor  # view of the rings, (C·slots, D)
    indices: Tensor  # (n,); equal indices have equal values
    values: Tensor  # (n, D)
    previous: Tensor  # (n, D), the rows before the write
    counters: tuple[Tensor, Tensor]  # (C,)
    new_counters: tuple[Tensor, Tensor]


def prepare_write(rings: Rings, vectors: Tensor, valid: Tensor, shard: Shard = WHOLE) -> RingWrite:
    """Prepare to append new entries to the ring of each class, images in batch order.

    `vectors` (B, C, E, D) are the new entries and `valid` (B, C, E) is their mask. B, E and the
    number of slots are at least 1. `rings` has the slots of one `shard` of the whole ring.
    """
    num_classes, slots, dim = rings.vectors.shape
    device = rings.vectors.device
    length = slots * shard.size
    available = valid.sum(dim=2)
    total = available.sum(dim=0)
    earlier = available.cumsum(dim=0) - available
    # (B, C, E): index of the entry among those of its class.
    order = earlier[..., None] + valid.cumsum(dim=2) - 1
    # If there are more entries than positions, write only the newest: each position once.
    written = valid & (order >= total[:, None] - length)
    position = (rings.next_positions[:, None] + order) % length
    if shard.size > 1:
        written &= position % shard.size == shard.rank
    slot = position // shard.size
    first_row = torch.arange(num_classes, device=device)[:, None] * slots
    rows = rings.vectors.view(-1, dim)
    indices, values, previous = _rows_to_write(
        rows,
        (first_row + slot).flatten(),
        vectors.reshape(-1, dim).to(rows.dtype),
        written.flatten(),
    )
    # Before the ring is full, its valid slots are those below the next position.
    end = rings.next_positions + total
    counts = torch.maximum(rings.counts, slots_below(end, shard)).clamp(max=slots)
    counters = (rings.counts, rings.next_positions)
    return RingWrite(rows, indices, values, previous, counters, (counts, end % length))


def append_all(appends: Sequence[tuple[Rings, Tensor, Tensor]], shard: Shard) -> None:
    """Append new entries and their mask to the rings of every queue, or to none.

    The arguments are those of `prepare_write`. All writes are prepared before the first one, so
    that a bank is never updated in part; the kernel makes them in one launch.
    """
    if appends and takes_kernels(appends[0][2]):
        from pixcontrast._bank.ring_kernels import append_entries

        append_entries([(*rings, *entries) for rings, *entries in appends], shard)
        return
    write_all([prepare_write(*append, shard) for append in appends])


def slots_below(end: Tensor, shard: Shard) -> Tensor:
    """Return how many of the first `end` positions of a ring belong to a shard."""
    return (end + (shard.size - 1 - shard.rank)) // shard.size


def write_all(writes: Sequence[RingWrite]) -> None:
    """Make all writes. If an exception is raised in between, restore the previous values.

    Python can be interrupted between any two writes. A second interruption, of the restoring, is
    not handled.
    """
    if torch.compiler.is_compiling():  # compiled code cannot be interrupted between two writes
        _write(writes)
        return
    counters = [counter for write in writes for counter in write.counters]
    previous = torch.stack(counters).unbind() if counters else ()
    try:
        _write(writes)
    except BaseException:
        for write in writes:
            write.rows[write.indices] = write.previous
        for counter, value in zip(counters, previous, strict=True):
            counter.copy_(value)
        raise


def _write(writes: Sequence[RingWrite]) -> None:
    for write in writes:
        write.rows[write.indices] = write.values
        for counter, value in zip(write.counters, write.new_counters, strict=True):
            counter.copy_(value)


def _rows_to_write(
    rows: Tensor, indices: Tensor, values: Tensor, written: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices, new values and previous values, with shapes independent of `written`.

    The indices of written entries are distinct. Every other entry is replaced by the first written
    entry, so that equal indices have equal values. If no entry is written, the previous value is
    written back.
    """
    first = written.to(torch.int64).argmax()[None]
    indices = torch.where(written, indices, indices[first])
    previous = rows[indices]
    first_value = torch.where(written[first][:, None], values[first], previous[first])
    return indices, torch.where(written[:, None], values, first_value), previous
