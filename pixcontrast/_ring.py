"""Ring buffers, one a class, written to by a fixed sequence of operations of fixed shapes.

A ring may be spread over W shards of as many slots each: place p of it, counted from 0, is slot
p // W of shard p mod W. Each shard is written by itself, of what all of them are given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Shard(NamedTuple):
    """Which part of a ring: number `rank` of `size`."""

    rank: int
    size: int


WHOLE = Shard(0, 1)


def write_rings(
    rings: Tensor,
    count: Tensor,
    next_place: Tensor,
    vectors: Tensor,
    available: Tensor,
    shard: Shard = WHOLE,
) -> None:
    """Append to each class's ring what each image has for it, images in order; in place.

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
    before = available.cumsum(dim=0) - available
    number = torch.arange(most, device=rings.device)
    turn = before[..., None] + number  # (B, C, E): which entry of its class in this batch
    # Of more entries than places only the newest are written: each place once.
    written = (number < available[..., None]) & (turn >= total[:, None] - places)
    place = (next_place[:, None] + turn) % places
    if shard.size > 1:
        written &= place % shard.size == shard.rank
    slot = place // shard.size
    first_of_class = torch.arange(num_classes, device=rings.device)[:, None] * slots
    _write_rows(
        rings.view(-1, dim),
        (first_of_class + slot).flatten(),
        vectors.reshape(-1, dim).to(rings.dtype),
        written.flatten(),
    )
    # Places below this have been written, of a ring that has not yet come round; of one that has,
    # count is as large as it gets.
    end = next_place + total
    own = (end + (shard.size - 1 - shard.rank)) // shard.size
    count.copy_(torch.maximum(count, own).clamp(max=slots))
    next_place.copy_(end % places)


def _write_rows(rows: Tensor, places: Tensor, values: Tensor, written: Tensor) -> None:
    """rows[places] = values where `written`, without a shape that depends on how many are.

    Places that are written are distinct. Every entry that is not written repeats the first one
    that is, so that writes to one place agree; with none at all, what stands there is put back.
    """
    leader = written.to(torch.int64).argmax()[None]
    places = torch.where(written, places, places[leader])
    leading = torch.where(written[leader][:, None], values[leader], rows[places[leader]])
    rows[places] = torch.where(written[:, None], values, leading)
