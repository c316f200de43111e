"""The similarities of a tile: one matrix product, scaled by 1/τ, saturated where it must be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.tiled.cache import last_level_cache
from pixcontrast._info_nce.tiled.class_order import Arrangement, values_cost_nothing

# A tile of similarities is at most 1,024 × 4,096, 16 MB in float32: with fewer rows the products
# fall behind the processor's rate, and more columns gain nothing (docs/performance.md).
TILE_ROWS = 1024
TILE_COLUMNS = 4096
# On the CPU it is written by one product, read by exp, sum and the other product, and so has to
# stay in the cache beside what they read: a quarter of it, as others use it too.
SHARE_OF_CACHE = 0.25

# Below this no exponential of a similarity overflows, nor does a row of them underflow to
# nothing, so that they need no maximum taken off: exp(±40) in float32, which ends at exp(88).
BOUNDED_LOGIT = {torch.float32: 40.0, torch.float64: 300.0}


class Similarities:
    """How the similarities of arranged anchors with arranged entries are to be made.

    Attributes:
        bounded: whether every one is known to lie within `BOUNDED_LOGIT`.
        may_saturate: for each piece, whether one of its own may be too large for its dtype.
    """

    def __init__(
        self, problem: Problem, rows: Tensor, pieces: Sequence[Arrangement | None]
    ) -> None:
        self._scale = problem.inverse_temperature
        self._limit = problem.logit_limit
        longest_row = longest(rows)
        scaled_row = longest_row * self._scale
        entries = [0.0 if piece is None else _longest_of(piece) for piece in pieces]
        self.bounded = scaled_row * max(entries, default=0.0) <= BOUNDED_LOGIT[rows.dtype]
        # A product must not overflow on the way to a small result, whether it scales its rows
        # first or its results last: a library does either.
        # Decided for each piece by itself: a backward pass may look at one of them alone, and has
        # to see the same bits.
        larger = max(scaled_row, longest_row)
        self.may_saturate = [not larger * max(one, 1.0) < self._limit for one in entries]

    def write(self, logits: Tensor, rows: Tensor, entries: Tensor, piece: int) -> None:
        """`logits` (R, T) overwritten by the similarities of (R, D) with (T, D) of a piece."""
        if self.may_saturate[piece]:
            torch.mm(rows, entries.T, out=logits)
            logits.mul_(self._scale).clamp_(-self._limit, self._limit)
        else:
            torch.addmm(logits, rows, entries.T, beta=0.0, alpha=self._scale, out=logits)


def tile_columns(device: torch.device) -> int:
    """The most columns of a tile of `TILE_ROWS` float32 rows."""
    if not values_cost_nothing(device):
        return TILE_COLUMNS
    fitting = int(SHARE_OF_CACHE * last_level_cache()) // (4 * TILE_ROWS)
    return min(TILE_COLUMNS, max(fitting, 256))


def slices(part: slice, size: int) -> Iterator[slice]:
    """Consecutive parts of at most `size`, as even as can be: a product dislikes a thin rest."""
    length = part.stop - part.start
    count = -(-length // size)
    for number in range(count):
        start, stop = number * length // count, (number + 1) * length // count
        yield slice(part.start + start, part.start + stop)


def longest(vectors: Tensor) -> float:
    """The length of the longest of (n, D) vectors; infinite where looking would be a wait."""
    if not values_cost_nothing(vectors.device):
        return float("inf")
    if vectors.shape[0] == 0:
        return 0.0
    return float(torch.linalg.vector_norm(vectors, dim=1).max())


def _longest_of(piece: Arrangement) -> float:
    tiles = slices(slice(0, len(piece)), TILE_COLUMNS)
    return max((longest(piece.rows(columns)) for columns in tiles), default=0.0)
