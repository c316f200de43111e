"""Random keys of (anchor, entry) pairs: a function of seed and numbers alone.

Counter-based, so that a forward and a backward pass see the same choice whatever tiles they work
on, with nothing stored.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_KEY = (1 << 31) - 1
# Keys that are mixed at a time: what is passed over twenty times should stay in the cache.
_MIXED_SIZE = 1 << 18


class PairKeys(NamedTuple):
    """The keys of R anchors with T entries: of one anchor, every entry's key is another.

    Attributes:
        row_bits: (R, 1) int32, distinct.
        column_bits: (T,) int32, distinct.
    """

    row_bits: Tensor
    column_bits: Tensor

    @classmethod
    def of(cls, seed: Tensor, row_numbers: Tensor, column_numbers: Tensor) -> PairKeys:
        """Keys of the anchors and entries with these numbers; `seed` () int64, not negative."""
        low, high = ((seed >> shift & LARGEST_KEY).to(torch.int32) for shift in (0, 31))
        rows = _mix_(_mix_(row_numbers.to(torch.int32) + high).bitwise_xor_(low))
        return cls(rows[:, None], _mix_(column_numbers.to(torch.int32) + low))

    def of_rows(self, rows: slice) -> PairKeys:
        return self._replace(row_bits=self.row_bits[rows])

    def of_columns(self, columns: slice | Tensor) -> PairKeys:
        return self._replace(column_bits=self.column_bits[columns])

    def all(self) -> Tensor:
        """(R, T) int32."""
        num_rows, num_columns = self.row_bits.shape[0], self.column_bits.shape[0]
        keys = self.row_bits.new_empty(num_rows, num_columns)
        height = max(1, _MIXED_SIZE // max(1, num_columns))
        for start in range(0, num_rows, height):
            rows = slice(start, start + height)
            keys[rows] = _mix_(self.row_bits[rows] ^ self.column_bits)
        return keys

    def at(self, places: Tensor) -> Tensor:
        """(R, k) int32, of the columns `places` (R, k)."""
        return _mix_(self.row_bits ^ self.column_bits[places])


def _mix_(numbers: Tensor) -> Tensor:
    """Mix 32 bits in place, one to one: "lowbias32" of Wellons' hash prospector (2018).

    Its multipliers are written as the signed integers with the same bits.
    """
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        numbers.bitwise_xor_((numbers >> shift).bitwise_and_((1 << (32 - shift)) - 1))
        numbers.mul_(multiplier)
    return numbers.bitwise_xor_((numbers >> 16).bitwise_and_((1 << 16) - 1))
