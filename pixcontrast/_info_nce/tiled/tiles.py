"""The tiles of similarities that the tiled form works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.tiled.class_order import ClassOrder, masks_of
from pixcontrast._info_nce.tiled.similarities import (
    MAX_ATTENDED,
    TILE_ROWS,
    Similarities,
    attend,
    can_attend,
    split,
    tile_columns,
)

# Rows of a tile of positives. Their positives are in about 1/C + rows/M of the sorted columns.
POSITIVE_ROWS = 64
# A product of slightly fewer rows takes twice the time (docs/performance.md), so it is padded.
MIN_ROWS = 64

# A class that fills this fraction of a tile gets tiles of its own, which need no mask.
LONG_CLASS = 1 / 8


class Tile(NamedTuple):
    """A tile: R rows of `Tiling.rows` against T entries of a contrast tensor, (T, D) operands.

    `all_negative`: every entry is known to be a negative of every anchor.
    """

    contrast_index: int
    block: slice
    columns: slice
    entries: Tensor
    all_negative: bool = False


class Tiling:
    """All tiles of a problem's anchors with its `wanted` contrast tensors.

    Attributes:
        anchors (ClassOrder): the ordered anchors.
        indices (slice or Tensor): their indices in the caller's order.
        contrast (dict of ClassOrder): the ordered entries of contrast tensors, by their index.
        rows (Tensor): the ordered anchors as operands: (m, D), or (2·m, D) if `doubled`.
        doubled (bool): whether `rows` has the anchors twice, one copy after the other. All anchors
            except those of one class are then one slice, which starts after the class.
        bounded (bool): whether every similarity is known to be small, see `Similarities`.
    """

    def __init__(self, problem: Problem, wanted: Sequence[bool]) -> None:
        self.anchors = anchors = ClassOrder.of_anchors(problem)
        self.indices = anchors.indices(slice(0, len(anchors)))
        self._problem = problem
        self.contrast = ClassOrder.of_contrast(problem, wanted)
        self._max_columns = tile_columns(anchors.labels.device)
        rows = anchors.operands(slice(0, len(anchors)))
        self._similarities = Similarities.of(problem, rows, self.contrast)
        self.bounded = self._similarities.bounded
        self.doubled = anchors.sorted
        self.rows = torch.cat([rows, rows]) if self.doubled else rows
        max_entries = max((len(order) for order in self.contrast.values()), default=0)
        max_rows = min(max(TILE_ROWS, POSITIVE_ROWS, MIN_ROWS), len(self.rows))
        self._buffer = self.rows.new_empty(max_rows * min(self._max_columns, max_entries))

    def all(self) -> Iterator[Tile]:
        """Yield every tile. Each entry is converted to an operand once."""
        for index, order in self.contrast.items():
            for columns in split(slice(0, len(order)), self._max_columns):
                entries = order.operands(columns)
                for block in split(slice(0, len(self.anchors)), TILE_ROWS):
                    yield Tile(index, block, columns, entries)

    def in_denominator(self, *, attending: bool) -> Iterator[Tile]:
        """Yield the tiles that Z sums over. If Z excludes positives, omit tiles of positives alone.

        With `attending`, tiles of long classes are larger where attention computes them.
        """
        all_anchors = slice(0, len(self.anchors))
        for index, order in self.contrast.items():
            attends = attending and self.may_attend(index)
            max_of_class = MAX_ATTENDED if attends else self._max_columns
            for columns in _cut(order, self._max_columns, max_of_class):
                entries = order.operands(columns)
                others, all_negative = all_anchors, False
                if self._problem.denominator == "negatives" and order.is_one_class(columns):
                    own = self.anchors.slice_with_classes_of(order, columns)
                    others = slice(own.stop, own.start + len(self.anchors))
                    all_negative = True
                for block in split(others, TILE_ROWS):
                    yield Tile(index, block, columns, entries, all_negative)

    def with_positives(self) -> Iterator[Tile]:
        """Yield tiles that contain all positives, in as few columns as the order allows."""
        for block in _cut(self.anchors, POSITIVE_ROWS, POSITIVE_ROWS):
            # The fewer rows, the more columns fit into the buffer.
            max_columns = max(1, len(self._buffer) // max(MIN_ROWS, block.stop - block.start))
            for index, order in self.contrast.items():
                same_classes = order.slice_with_classes_of(self.anchors, block)
                for columns in split(same_classes, max_columns):
                    yield Tile(index, block, columns, order.operands(columns))

    def may_attend(self, index: int) -> bool:
        """Return whether PyTorch's attention can compute a contrast tensor's tiles without mask."""
        if self._problem.denominator == "all" and self.contrast[index].is_anchors:
            return False  # each anchor is excluded from its own denominator
        return can_attend(self.rows) and not self._similarities.may_saturate[index]

    def attend(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield Z and o over disjoint subsets of a tile that needs no mask."""
        return attend(self.rows[tile.block], tile.entries, self._problem.inverse_temperature)

    def logits(self, tile: Tile) -> Tensor:
        """Compute the similarities (R, T), in a buffer that the next call overwrites."""
        block, num_columns = tile.block, len(tile.entries)
        rows = self.rows[block.start : max(block.stop, block.start + MIN_ROWS)]
        logits = self._buffer[: len(rows) * num_columns].view(len(rows), num_columns)
        self._similarities.write(logits, rows, tile.entries, tile.contrast_index)
        return logits[: block.stop - block.start]

    def is_all_positive(self, tile: Tile) -> bool:
        """Return whether every entry is known to be a positive of every anchor."""
        order = self.contrast[tile.contrast_index]
        return (
            not order.is_anchors
            and order.is_one_class(tile.columns)
            and self.anchors.is_one_class(tile.block)
            and self._may_share_class(tile)
        )

    def masks(self, tile: Tile) -> Masks | None:
        """Return the positives and negatives of a tile; None: every entry is a negative."""
        if not self._may_share_class(tile):
            return None
        order = self.contrast[tile.contrast_index]
        return masks_of(self.anchors, tile.block, order, tile.columns)

    def outside_denominator(self, tile: Tile) -> Tensor | None:
        """Return the mask (R, T) of similarities that Z excludes, or None if it sums over all."""
        denominator = self._problem.denominator
        order = self.contrast[tile.contrast_index]
        if denominator == "all" and order.sorted and not order.is_anchors:
            return None
        masks = self.masks(tile)
        return None if masks is None else ~masks.in_denominator(denominator)

    def _may_share_class(self, tile: Tile) -> bool:
        if tile.all_negative:
            return False
        order = self.contrast[tile.contrast_index]
        return order.may_share_class(tile.columns, self.anchors, tile.block)


def _cut(order: ClassOrder, size: int, max_of_class: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size`, cut where long classes start and end.

    Slices inside a long class have at most `max_of_class` vectors.
    """
    done = 0
    for long_class in order.long_classes(max(1, int(LONG_CLASS * size))):
        yield from split(slice(done, long_class.start), size)
        yield from split(long_class, max_of_class)
        done = long_class.stop
    yield from split(slice(done, len(order)), size)
