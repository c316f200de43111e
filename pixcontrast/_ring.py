"""Ring buffers, one a class, written to by a fixed sequence of operations of fixed shapes.

A write is made in two steps: everything is computed, and only then is anything changed.

A ring may be spread over W shards of as many slots each: place p of it, counted from 0, is slot
p // W of shard p mod W. Each shard is written by itself, of what all of them are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Shard(NamedTuple):
    """Which part of a ring: number `rank` of `size`."""

    rank: int
    size: int


WHOLE = Shard(0, 1)


class RingWrite(NamedTuple):
    """What is to be written to the rings of all classes, and what stands there before.

    Attributes:
        rows: (C·slots, D) the rings, a view.
        places: (n,) which rows are written, some of them repeatedly, with the same values.
        values: (n, D) what is written.
        before: (n, D) what stood there.
        counters: (C,) each, count and next place.
        counted: (C,) each, what they become.
    """

    rows: Tensor
    places: Tensor
    values: Tensor
    before: Tensor
    counters: tuple[Tensor, Tensor]
    counted: tuple[Tensor, Tensor]


def prepare_write(
    rings: Tensor,
    count: Tensor,
    next_place: Tensor,
    vectors: Tensor,
    available: Tensor,
    shard: Shard = WHOLE,
) -> RingWrite:
    """What appends to each class's ring what each image has for it, images in order.

    Args:
        rings: (C, slots, D), slots of at least 1.
        count: (C,) int64, how many of these slots are valid.
        next_place: (C,) int64, the place of the whole ring that is written next.
        vectors: (B, C, E, D), with B and E of at least 1; the first `available` of each E count.
        available: (B, C) int64.
        shard: which part of the whole ring these slots are.
    """
    num_classes, slots, dim = rings.shape
    places = slots * shard.size
    most = vectors.shape[2]
    total = available.sum(dim=0)
    earlier = available.cumsum(dim=0) - available
    number = torch.arange(most, device=rings.device)
    turn = earlier[..., None] + number  # (B, C, E): which entry of its class in this batch
    # Of more entries than places only the newest are written: each place once.
    written = (number < available[..., None]) & (turn >= total[:, None] - places)
    place = (next_place[:, None] + turn) % places
    if shard.size > 1:
        written &= place % shard.size == shard.rank
    slot = place // shard.size
    first_of_class = torch.arange(num_classes, device=rings.device)[:, None] * slots
    rows = rings.view(-1, dim)
    written_rows, values, before = _rows_to_write(
        rows,
        (first_of_class + slot).flatten(),
        vectors.reshape(-1, dim).to(rings.dtype),
        written.flatten(),
    )
    # A ring that has come round has as many as it gets; one that has not, those below its end.
    end = next_place + total
    counted = (torch.maximum(count, slots_below(end, shard)).clamp(max=slots), end % places)
    return RingWrite(rows, written_rows, values, before, (count, next_place), counted)


def slots_below(end: Tensor, shard: Shard) -> Tensor:
    """How many of the first `end` places of a ring are a shard's."""
    return (end + (shard.size - 1 - shard.rank)) // shard.size


def write_all(writes: Sequence[RingWrite]) -> None:
    """Make all of the writes, or, where anything is raised in between, none of them.

    Python may be interrupted between any two writes. A second interruption, of the restoring
    itself, is beyond mending.
    """
    if torch.compiler.is_compiling():  # no line of Python runs between two writes
        _write(writes)
        return
    counters = [counter for write in writes for counter in write.counters]
    before = torch.stack(counters).unbind() if counters else ()
    try:
        _write(writes)
    except BaseException:
        for write in writes:
            write.rows[write.places] = write.before
        for counter, value in zip(counters, before, strict=True):
            counter.copy_(value)
        raise


def _write(writes: Sequence[RingWrite]) -> None:
    for write in writes:
        write.rows[write.places] = write.values
        for counter, value in zip(write.counters, write.counted, strict=True):
            counter.copy_(value)


def _rows_to_write(
    rows: Tensor, places: Tensor, values: Tensor, written: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Places, values and what stands there, without a shape that depends on how many are `written`.

    Places that are written are distinct. Every entry that is not written repeats the first one
    that is, so that writes to one place agree; with none at all, what stands there is put back.
    """
    leader = written.to(torch.int64).argmax()[None]
    places = torch.where(written, places, places[leader])
    before = rows[places]
    leading = torch.where(written[leader][:, None], values[leader], before[leader])
    return places, torch.where(written[:, None], values, leading), before
