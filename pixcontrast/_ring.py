"""Ring buffers, one a class, written to by a fixed sequence of operations of fixed shapes.

A write is made in two steps: everything is computed, and only then is anything changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class RingWrite(NamedTuple):
    """What is to be written to the rings of all classes, and what stands there before.

    Attributes:
        rows: (C·slots, D) the rings, a view.
        places: (n,) which rows are written, some of them repeatedly, with the same values.
        values: (n, D) what is written.
        before: (n, D) what stood there.
        counters: (C,) each, count and next slot.
        counted: (C,) each, what they become.
    """

    rows: Tensor
    places: Tensor
    values: Tensor
    before: Tensor
    counters: tuple[Tensor, Tensor]
    counted: tuple[Tensor, Tensor]


def write_rings(
    rings: Tensor, count: Tensor, next_slot: Tensor, vectors: Tensor, available: Tensor
) -> None:
    """Append to each class's ring; `prepare_write` and `write_all` in one."""
    write_all([prepare_write(rings, count, next_slot, vectors, available)])


def prepare_write(
    rings: Tensor, count: Tensor, next_slot: Tensor, vectors: Tensor, available: Tensor
) -> RingWrite:
    """What appends to each class's ring what each image has for it, images in order.

    Args:
        rings: (C, slots, D), slots of at least 1.
        count: (C,) int64, how many slots are valid.
        next_slot: (C,) int64, the slot that is written next.
        vectors: (B, C, E, D), with B and E of at least 1; the first `available` of each E count.
        available: (B, C) int64.
    """
    num_classes, slots, dim = rings.shape
    most = vectors.shape[2]
    total = available.sum(dim=0)
    earlier = available.cumsum(dim=0) - available
    number = torch.arange(most, device=rings.device)
    turn = earlier[..., None] + number  # (B, C, E): which entry of its class in this batch
    # Of more entries than slots only the newest are written: each slot once.
    written = (number < available[..., None]) & (turn >= total[:, None] - slots)
    slot = (next_slot[:, None] + turn) % slots
    first_of_class = torch.arange(num_classes, device=rings.device)[:, None] * slots
    rows = rings.view(-1, dim)
    places, values, before = _rows_to_write(
        rows,
        (first_of_class + slot).flatten(),
        vectors.reshape(-1, dim).to(rings.dtype),
        written.flatten(),
    )
    counted = ((count + total).clamp(max=slots), (next_slot + total) % slots)
    return RingWrite(rows, places, values, before, (count, next_slot), counted)


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
