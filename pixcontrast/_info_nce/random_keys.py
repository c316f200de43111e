"""Random keys of (anchor, entry) pairs, a function of the seed and the two ids alone.

The keys are counter-based: the forward and the backward pass see the same random choice whatever
their tiles are, and nothing is stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_KEY = (1 << 31) - 1
# Keys that are mixed at a time. About twenty passes read them, so they should stay in the cache.
_MIXED_SIZE = 1 << 18


class PairKeys(NamedTuple):
    """The keys of R anchors with T entries. The keys of one anchor are distinct.

    Attributes:
        row_bits: (R, 1) int32, distinct.
        column_bits: (T,) int32, distinct.
    """

    row_bits: Tensor
    column_bits: Tensor

    @classmethod
    def of(cls, seed: Tensor, anchor_ids: Tensor, entry_ids: Tensor) -> PairKeys:
        """Return the keys of anchors and entries with these ids; `seed` is () int64, at least 0."""
        low, high = ((seed >> shift & LARGEST_KEY).to(torch.int32) for shift in (0, 31))
        rows = _mix_(_mix_(anchor_ids.to(torch.int32) + high).bitwise_xor_(low))
        return cls(rows[:, None], _mix_(entry_ids.to(torch.int32) + low))

    def part(self, rows: slice, columns: slice | Tensor) -> PairKeys:
        """Return the keys of some anchors with some entries."""
        return PairKeys(self.row_bits[rows], self.column_bits[columns])

    def all(self) -> Tensor:
        """Compute all keys, (R, T) int32."""
        num_rows, num_columns = self.row_bits.shape[0], self.column_bits.shape[0]
        keys = self.row_bits.new_empty(num_rows, num_columns)
        height = max(1, _MIXED_SIZE // max(1, num_columns))
        for start in range(0, num_rows, height):
            rows = slice(start, start + height)
            keys[rows] = _mix_(self.row_bits[rows] ^ self.column_bits)
        return keys

    def at(self, columns: Tensor) -> Tensor:
        """Compute the keys of each row's own columns, given as (R, k); (R, k) int32."""
        return _mix_(self.row_bits ^ self.column_bits[columns])


def _mix_(bits: Tensor) -> Tensor:
    """Mix 32 bits in place, one to one: "lowbias32" of Wellons' hash prospector (2018).

    The multipliers are written as signed integers with the same bits.
    """
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))
        bits.mul_(multiplier)
    return bits.bitwise_xor_((bits >> 16).bitwise_and_((1 << 16) - 1))
