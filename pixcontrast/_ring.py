"""Ring buffers, one a class, written to by a fixed sequence of operations of fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor


def write_rings(
    rings: Tensor, count: Tensor, next_slot: Tensor, vectors: Tensor, available: Tensor
) -> None:
    """Append to each class's ring what each image has for it, images in order; in place.

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
    before = available.cumsum(dim=0) - available
    number = torch.arange(most, device=rings.device)
    turn = before[..., None] + number  # (B, C, E): which entry of its class in this batch
    # Of more entries than slots only the newest are written: each slot once.
    written = (number < available[..., None]) & (turn >= total[:, None] - slots)
    slot = (next_slot[:, None] + turn) % slots
    first_of_class = torch.arange(num_classes, device=rings.device)[:, None] * slots
    _write_rows(
        rings.view(-1, dim),
        (first_of_class + slot).flatten(),
        vectors.reshape(-1, dim).to(rings.dtype),
        written.flatten(),
    )
    count.copy_((count + total).clamp(max=slots))
    next_slot.copy_((next_slot + total) % slots)


def _write_rows(rows: Tensor, places: Tensor, values: Tensor, written: Tensor) -> None:
    """rows[places] = values where `written`, without a shape that depends on how many are.

    Places that are written are distinct. Every entry that is not written repeats the first one
    that is, so that writes to one place agree; with none at all, what stands there is put back.
    """
    leader = written.to(torch.int64).argmax()[None]
    places = torch.where(written, places, places[leader])
    leading = torch.where(written[leader][:, None], values[leader], rows[places[leader]])
    rows[places] = torch.where(written[:, None], values, leading)
