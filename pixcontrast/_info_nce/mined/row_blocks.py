"""Stripes, the tiles of mining: a few anchors against every entry.

An exact selection needs an anchor's whole row of similarities, so a stripe holds as many complete
rows as fit into a fixed number of similarities, at the least one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.random_keys import PairKeys
from pixcontrast._info_nce.tiled.class_order import Arrangement, arrange_anchors, arrange_entries
from pixcontrast._info_nce.tiled.similarities import TILE_ROWS, Similarities, slices, tile_columns

# Similarities in a stripe: 64 rows, under which products are slow, of 100,000 entries.
STRIPE_SIZE = 13 << 19


class Part(NamedTuple):
    """A block of anchors against some columns: (R, T) each.

    Attributes:
        logits: the similarities.
        positive: who is a positive of whom.
        negative: who is a negative of whom.
        keys: the random keys, or None where nothing is left to chance.
    """

    logits: Tensor
    positive: Tensor
    negative: Tensor
    keys: Tensor | None


class Stripes:
    """Makes the stripes of a problem. Columns are the arranged entries, piece after piece.

    Of pieces that are not `wanted` labels alone are looked at.

    Attributes:
        anchors: the arranged anchors.
        pieces: the arranged entries of each piece.
        columns: which columns each piece has.
        num_columns: N, less what is left out.
    """

    def __init__(self, problem: Problem, wanted: list[bool]) -> None:
        self._problem = problem
        self.anchors: Arrangement = arrange_anchors(problem)
        self.pieces = [arrange_entries(piece, problem) for piece in problem.pieces]
        everyone = slice(0, len(self.anchors))
        self.rows = self.anchors.rows(everyone)
        looked_at = [p if want else None for p, want in zip(self.pieces, wanted, strict=True)]
        self._similarities = Similarities(problem, self.rows, looked_at)
        self.columns: list[slice] = []
        self.num_columns = 0
        for piece in self.pieces:
            self.columns.append(slice(self.num_columns, self.num_columns + len(piece)))
            self.num_columns += len(piece)
        self._most_columns = tile_columns(self.rows.device)
        self._anchor_numbers = self.anchors.numbers() + problem.first_row
        self._keys = self._pair_keys()

    def blocks(self) -> list[slice]:
        """Of all pieces, wanted or not: a block has the same rows in a forward and a backward.

        Or else its similarities could differ in the last bit and cross a threshold.
        """
        height = min(TILE_ROWS, max(1, STRIPE_SIZE // max(1, self.num_columns)))
        return list(slices(slice(0, len(self.anchors)), height))

    def all(self) -> Iterator[tuple[slice, Tensor]]:
        """Every block with its (R, N) similarities, a buffer that the next block overwrites."""
        blocks = self.blocks()
        height = max((block.stop - block.start for block in blocks), default=0)
        buffer = self.rows.new_empty(height * self.num_columns)
        for block in blocks:
            num_rows = block.stop - block.start
            logits = buffer[: num_rows * self.num_columns].view(num_rows, self.num_columns)
            for number, columns in enumerate(self.columns):
                self.fill(logits[:, columns], block, number)
            yield block, logits

    def tiles(self, number: int) -> list[slice]:
        """The columns of a piece, counted within it, that are multiplied at a time."""
        return list(slices(slice(0, len(self.pieces[number])), self._most_columns))

    def fill(self, logits: Tensor, block: slice, number: int) -> Tensor:
        """Write the similarities of a block with one piece into `logits` (R, n)."""
        piece = self.pieces[number]
        for tile in self.tiles(number):
            self._similarities.write(logits[:, tile], self.rows[block], piece.rows(tile), number)
        return logits

    def part(self, logits: Tensor, block: slice, numbers: Sequence[int] | None = None) -> Part:
        """What stands where in the similarities of a block with some pieces; None: with all."""
        numbers = range(len(self.pieces)) if numbers is None else numbers
        positives, negatives, keys = [], [], []
        row_labels = self.anchors.labels[block][:, None]
        for number in numbers:
            labels = self.pieces[number].labels[None, :]
            positive = row_labels == labels
            negative = positive.logical_not()
            if not self.pieces[number].sorted:
                negative &= labels >= 0
            if self._problem.pieces[number].is_anchors:
                own = torch.arange(block.start, block.stop, device=labels.device)[:, None]
                positive &= own != torch.arange(labels.shape[1], device=labels.device)
            positives.append(positive)
            negatives.append(negative)
            if self._keys is not None:
                keys.append(self.keys(block, self.columns[number]).all())
        return Part(
            logits,
            torch.cat(positives, dim=1),
            torch.cat(negatives, dim=1),
            torch.cat(keys, dim=1) if keys else None,
        )

    def keys(self, block: slice, columns: slice | Tensor) -> PairKeys:
        """The random keys of a block with some columns."""
        assert self._keys is not None  # a strategy that asks has drawn a seed
        return self._keys.of_rows(block).of_columns(columns)

    def weigh_all(self, change: Tensor) -> Tensor:
        """(R, D) Σ_j change_ij k_j / τ, over all columns."""
        return self.sum_all(change).mul_(self._problem.inverse_temperature)

    def sum_all(self, change: Tensor) -> Tensor:
        """(R, D) Σ_j change_ij k_j, over all columns."""
        result = self.rows.new_zeros(change.shape[0], self.rows.shape[1])
        for number, (piece, columns) in enumerate(zip(self.pieces, self.columns, strict=True)):
            for tile in self.tiles(number):
                result.addmm_(change[:, columns][:, tile], piece.rows(tile))
        return result

    def weigh(self, columns: Tensor, change: Tensor) -> Tensor:
        """(R, D) Σ_j change_ij k_j / τ, over the columns of each row given as (R, k).

        The few entries are read where they stand; they have to be operands as they are.
        """
        result = self.rows.new_zeros(change.shape[0], self.rows.shape[1])
        for piece, part in zip(self.pieces, self.columns, strict=True):
            inside = (columns >= part.start) & (columns < part.stop)
            counts = inside.sum(dim=1)
            result += F.embedding_bag(
                piece.numbers()[columns[inside] - part.start],
                piece.vectors,
                counts.cumsum(0) - counts,
                mode="sum",
                per_sample_weights=change[inside],
            )
        return result.mul_(self._problem.inverse_temperature)

    def may_be_weighed_in_place(self) -> bool:
        """Whether every entry is an operand as it is."""
        dtype = self._problem.compute_dtype
        same = all(piece.entries.dtype == dtype for piece in self._problem.pieces)
        return same and self._problem.product_dtype == dtype

    def _pair_keys(self) -> PairKeys | None:
        if self._problem.seed is None or not self.pieces:
            return None
        numbers = [
            arranged.numbers() + piece.first_column
            for piece, arranged in zip(self._problem.pieces, self.pieces, strict=True)
        ]
        return PairKeys.of(self._problem.seed, self._anchor_numbers, torch.cat(numbers))
