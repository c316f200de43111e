"""Find the k-th largest of many numbers digit by digit, from counts alone.

Numbers are mapped to integers of the same order. Each round finds the next 4 bits of the k-th
largest integer from the counts of the candidates that reach each possible value. Counts are exact
and can be added in any order, so the candidates may be distributed over tiles or ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DIGIT_BITS = 4
NUM_DIGITS = 1 << DIGIT_BITS

CountDigits = Callable[[Tensor, int], Tensor]
"""Maps a prefix (R, 1) and a shift to (R, 16) counts: how many candidates of each row, as unsigned
integers, are at least `prefix | digit << shift`, for each digit from 0 to 15."""


def to_ordered_int(numbers: Tensor) -> Tensor:
    """Map float32 to int32, or float64 to int64, of the same order. Both zeros are equal."""
    dtype = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    return _reverse_negatives((numbers + 0.0).view(dtype))


def from_ordered_int(integers: Tensor) -> Tensor:
    """Invert `to_ordered_int`."""
    dtype = torch.float64 if integers.dtype == torch.int64 else torch.float32
    return _reverse_negatives(integers).view(dtype)


def _reverse_negatives(bits: Tensor) -> Tensor:
    # The bits of negative floats ascend with their magnitude, those of negative integers descend.
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def radix_select(count_digits: CountDigits, k: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the k-th largest integer of each row's candidates, (R, 1), for k (R, 1) at least 1.

    The integers have the given dtype, int32 or int64. A row with fewer than k candidates gets the
    minimum of the dtype.
    """
    prefix = torch.zeros_like(k, dtype=dtype)
    for shift in range(torch.iinfo(dtype).bits - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = count_digits(prefix, shift)
        digit = (counts[:, 1:] >= k).sum(dim=1, keepdim=True)
        prefix = prefix | (digit << shift).to(dtype)
    return _flip_sign(prefix)


def count_digits_of(integers: Tensor, candidate: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Count as `CountDigits` does, for integers (R, T) and candidates (R, T) bool."""
    digit = _flip_sign(integers) >> shift & (NUM_DIGITS - 1)
    above = shift + DIGIT_BITS
    if above < torch.iinfo(integers.dtype).bits:
        # A candidate with a larger prefix reaches every digit, one with a smaller prefix none.
        own, known = integers >> above, _flip_sign(prefix) >> above
        digit = digit.masked_fill(own > known, NUM_DIGITS - 1)
        candidate = candidate & (own >= known)
    counts = torch.zeros(len(integers), NUM_DIGITS, dtype=torch.int64, device=integers.device)
    counts.scatter_add_(1, digit.to(torch.int64), candidate.to(torch.int64))
    return counts.flip(1).cumsum(dim=1).flip(1)


def _flip_sign(integers: Tensor) -> Tensor:
    """Map signed to unsigned integers of the same order, and back."""
    return integers ^ torch.iinfo(integers.dtype).min
