"""The tiles of similarities that the tiled form works on, and what stands in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.tiled import attention
from pixcontrast._info_nce.tiled.class_order import Arrangement
from pixcontrast._info_nce.tiled.similarities import TILE_ROWS, Similarities, slices, tile_columns

# Positives stand in few columns for few rows: sorted by class, about 1/C + rows/M of them.
POSITIVE_ROWS = 64
# A product of fewer rows than this takes twice as long as one of this many (docs/performance.md).
LEAST_ROWS = 64

# A tile is cut where a class ends, so that it needs no mask, if the class fills this much of it.
LONG_RUN = 1 / 8


class Tile(NamedTuple):
    """A block of R anchors against T columns of a piece.

    Attributes:
        piece: the number of the piece.
        block: which anchors, as rows of `Tiling.rows`.
        columns: which entries of the piece.
        entries: (T, D) the columns.
        shares_no_class: whether it is known beforehand that no row's class is a column's.
    """

    piece: int
    block: slice
    columns: slice
    entries: Tensor
    shares_no_class: bool = False


class Tiling:
    """All tiles of a problem; a piece that is None has none.

    Attributes:
        rows: the arranged anchors as operands, (m, D), or (2·m, D) where they stand twice over:
            then all of them but those of one class are one slice, round the end if need be.
        stands_twice: whether they do.
        bounded: whether every similarity is known to be small, see `Similarities`.
    """

    def __init__(
        self,
        problem: Problem,
        anchors: Arrangement,
        pieces: Sequence[Arrangement | None],
    ) -> None:
        self.anchors = anchors
        self._problem = problem
        self._pieces = pieces
        self._most_columns = tile_columns(anchors.labels.device)
        rows = anchors.rows(slice(0, len(anchors)))
        self._similarities = Similarities(problem, rows, pieces)
        self.bounded = self._similarities.bounded
        self.stands_twice = anchors.sorted
        self.rows = torch.cat([rows, rows]) if self.stands_twice else rows
        widest = max((len(piece) for _, piece in self._wanted()), default=0)
        highest = min(max(TILE_ROWS, POSITIVE_ROWS, LEAST_ROWS), len(self.rows))
        self._buffer = self.rows.new_empty(highest * min(self._most_columns, widest))

    def all(self) -> Iterator[Tile]:
        """Every tile; the entries of a column are fetched once."""
        for number, piece in self._wanted():
            for columns in slices(slice(0, len(piece)), self._most_columns):
                entries = piece.rows(columns)
                for block in slices(slice(0, len(self.anchors)), TILE_ROWS):
                    yield Tile(number, block, columns, entries)

    def in_denominator(self, *, attending: bool) -> Iterator[Tile]:
        """The tiles that Z sums over: all, but for those that hold positives alone.

        Where `attending`, long classes of the pieces that may be attended to are cut less often.
        """
        everyone = slice(0, len(self.anchors))
        for number, piece in self._wanted():
            unwritten = attending and self.may_attend(number)
            most_of_run = attention.MOST_ENTRIES if unwritten else self._most_columns
            for columns in _cut(piece, self._most_columns, most_of_run):
                entries = piece.rows(columns)
                others, alone = everyone, False
                if self._problem.denominator == "negatives" and piece.is_one_class(columns):
                    own = self.anchors.with_classes_of(piece, columns)
                    others, alone = slice(own.stop, own.start + len(self.anchors)), True
                for block in slices(others, TILE_ROWS):
                    yield Tile(number, block, columns, entries, alone)

    def with_positives(self) -> Iterator[Tile]:
        """The tiles that hold all positives, in as few columns as the arrangement allows."""
        for block in _cut(self.anchors, POSITIVE_ROWS, POSITIVE_ROWS):
            # Few rows, and so as many more columns.
            most = max(1, len(self._buffer) // max(LEAST_ROWS, block.stop - block.start))
            for number, piece in self._wanted():
                part = piece.with_classes_of(self.anchors, block)
                for columns in slices(part, most):
                    yield Tile(number, block, columns, piece.rows(columns))

    def may_attend(self, number: int) -> bool:
        """Whether tiles of a piece that need no mask can be left to PyTorch's attention."""
        masked = self._problem.denominator == "all" and self._problem.pieces[number].is_anchors
        finite = not self._similarities.may_saturate[number]
        return attention.can_attend(self.rows) and finite and not masked

    def attend(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Z and o over shares of a tile that needs no mask."""
        scale = self._problem.inverse_temperature
        return attention.attend(self.rows[tile.block], tile.entries, scale)

    def logits(self, tile: Tile) -> Tensor:
        """(R, T) the similarities, in a buffer that the next ones overwrite."""
        block, num_columns = tile.block, len(tile.entries)
        rows = self.rows[block.start : max(block.stop, block.start + LEAST_ROWS)]
        logits = self._buffer[: len(rows) * num_columns].view(len(rows), num_columns)
        self._similarities.write(logits, rows, tile.entries, tile.piece)
        return logits[: block.stop - block.start]

    def is_all_positive(self, tile: Tile) -> bool:
        """Whether labels alone say that all of the tile are positives of each other."""
        piece = self._arrangement(tile)
        return (
            not self._holds_anchors(tile)
            and piece.is_one_class(tile.columns)
            and self.anchors.is_one_class(tile.block)
            and self._may_share_a_class(tile)
        )

    def positive(self, tile: Tile) -> Tensor | None:
        """(R, T) who is a positive of whom, or None: nobody, as far as labels tell."""
        if not self._may_share_a_class(tile):
            return None
        same = self._same_class(tile)
        return same & ~self._is_self(tile) if self._holds_anchors(tile) else same

    def negative(self, tile: Tile) -> Tensor | None:
        """(R, T) who is a negative of whom, or None: everybody."""
        if not self._may_share_a_class(tile):
            return None
        others = self._with_absent(tile, self._same_class(tile))
        return others if others is None else others.logical_not_()

    def outside_denominator(self, tile: Tile) -> Tensor | None:
        """(R, T) which similarities Z leaves out, or None: it takes them all."""
        if not self._may_share_a_class(tile):
            return None
        if self._problem.denominator == "negatives":
            return self._with_absent(tile, self._same_class(tile))
        if self._holds_anchors(tile):
            return self._with_absent(tile, self._is_self(tile))
        return self._with_absent(tile, None)

    def _may_share_a_class(self, tile: Tile) -> bool:
        if tile.shares_no_class:
            return False
        return self._arrangement(tile).overlap(tile.columns, self.anchors, tile.block)

    def _same_class(self, tile: Tile) -> Tensor:
        row_labels = self.anchors.labels[tile.block]
        column_labels = self._arrangement(tile).labels[tile.columns]
        return row_labels[:, None] == column_labels[None, :]

    def _with_absent(self, tile: Tile, chosen: Tensor | None) -> Tensor | None:
        """What is chosen, and the columns of entries that take no part, if any stand here."""
        arrangement = self._arrangement(tile)
        if arrangement.sorted:
            return chosen
        absent = (arrangement.labels[tile.columns] < 0)[None, :]
        return absent if chosen is None else chosen | absent

    def _is_self(self, tile: Tile) -> Tensor:
        # Anchors as rows and as columns stand in one order.
        device = self.rows.device
        row_numbers = torch.arange(tile.block.start, tile.block.stop, device=device)
        column_numbers = torch.arange(tile.columns.start, tile.columns.stop, device=device)
        return row_numbers[:, None] == column_numbers[None, :]

    def _holds_anchors(self, tile: Tile) -> bool:
        return self._problem.pieces[tile.piece].is_anchors

    def _arrangement(self, tile: Tile) -> Arrangement:
        arrangement = self._pieces[tile.piece]
        assert arrangement is not None  # tiles are made of wanted pieces alone
        return arrangement

    def _wanted(self) -> Iterator[tuple[int, Arrangement]]:
        for number, piece in enumerate(self._pieces):
            if piece is not None:
                yield number, piece


def _cut(arrangement: Arrangement, size: int, most_of_run: int) -> Iterator[slice]:
    """Consecutive parts of at most `size`, cut where long runs of one class start and end.

    Parts of a long run are of at most `most_of_run`.
    """
    done = 0
    for run in arrangement.long_runs(max(1, int(LONG_RUN * size))):
        yield from slices(slice(done, run.start), size)
        yield from slices(run, most_of_run)
        done = run.stop
    yield from slices(slice(done, len(arrangement)), size)
