"""Vectors sorted by class, without copying them, so that most tiles need no mask.

On the CPU, where looking at a value costs nothing, those that take no part are left out and the
classes' places are known. On any other device that would be a wait: vectors stay as they
stand, and every question is answered so that it holds for whatever labels there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._equation.problem import Piece, Problem
from pixcontrast._labels import IGNORED

# On an accelerator absent anchors stay in their place. With a label of their own they match no
# entry, not even an absent one.
IGNORED_ANCHOR = IGNORED - 1


def values_cost_nothing(device: torch.device) -> bool:
    """Whether the host may look at values on this device without waiting for it."""
    return device.type == "cpu"


class Classes(NamedTuple):
    """Which classes stand where in sorted labels, on the host, where asking costs nothing.

    Attributes:
        labels: the classes, ascending.
        starts: where each one's vectors start.
        stops: and where they stop.
    """

    labels: list[int]
    starts: list[int]
    stops: list[int]

    @classmethod
    def of(cls, ascending: Tensor) -> Classes:
        if len(ascending) == 0:
            return cls([], [], [])
        # A byte for each vector, which of a bank are many.
        starts = [0, *((ascending[1:] != ascending[:-1]).nonzero().squeeze(1) + 1).tolist()]
        return cls(ascending[starts].tolist(), starts, [*starts[1:], len(ascending)])

    def range(self, tile: slice) -> tuple[int, int]:
        """The least and the largest label of a tile that is not empty."""
        first, last = bisect_right(self.stops, tile.start), bisect_right(self.stops, tile.stop - 1)
        return self.labels[first], self.labels[last]

    def slice(self, first: int, last: int) -> slice:
        """The part that holds the labels from `first` to `last`."""
        start, stop = bisect_left(self.labels, first), bisect_right(self.labels, last)
        if start == stop:
            return slice(0, 0)
        return slice(self.starts[start], self.stops[stop - 1])


class Arrangement:
    """(n, D) vectors in an order that suits the tiles.

    Attributes:
        vectors: (n, D) as they came.
        labels: (m,) in that order; m is n, or fewer where absent vectors are left out.
        order: (m,) the places of the vectors in the tensor they came in, or None: as it stands.
        sorted: whether labels ascend and none is absent.
    """

    def __init__(self, vectors: Tensor, labels: Tensor, problem: Problem) -> None:
        self.vectors = vectors
        self._problem = problem
        self.labels = labels
        self.order: Tensor | None = None
        self._classes = Classes([], [], [])
        self.sorted = values_cost_nothing(labels.device)
        if self.sorted:
            self._sort()

    def __len__(self) -> int:
        return self.labels.shape[0]

    def rows(self, tile: slice) -> Tensor:
        """The vectors of a tile, as operands: a view where they lie together, else a copy."""
        operand = self._problem.operand(self.vectors[self.places(tile)])
        if self.sorted:
            return operand
        # 0 · NaN in a product would reach those that take part.
        return torch.where((self.labels[tile] >= 0)[:, None], operand, 0.0)

    def places(self, tile: slice) -> slice | Tensor:
        """Where the vectors of a tile lie in the tensor they came in."""
        if self.order is None or tile.start == tile.stop:
            return tile
        if self._lies_together:
            return slice(self._first + tile.start, self._first + tile.stop)
        if self._breaks[tile.start] == self._breaks[tile.stop - 1]:
            first = int(self.order[tile.start])
            return slice(first, first + tile.stop - tile.start)
        return self.order[tile]

    def numbers(self) -> Tensor:
        """(m,) the places of the vectors in the tensor they came in."""
        if self.order is not None:
            return self.order
        return torch.arange(len(self), device=self.labels.device)

    def overlap(self, tile: slice, other: Arrangement, other_tile: slice) -> bool:
        """Whether a class of one tile may stand in the other (or an absent vector in either)."""
        if not self.sorted:
            return True
        first, last = self._classes.range(tile)
        other_first, other_last = other._classes.range(other_tile)
        return first <= other_last and other_first <= last

    def is_one_class(self, tile: slice) -> bool:
        """Whether a tile is known to be of one class."""
        if not self.sorted:
            return False
        first, last = self._classes.range(tile)
        return first == last

    def long_runs(self, length: int) -> list[slice]:
        """Where classes stand that have at least `length` vectors, as far as may be known."""
        if not self.sorted:
            return []
        ends = zip(self._classes.starts, self._classes.stops, strict=True)
        return [slice(start, stop) for start, stop in ends if stop - start >= length]

    def runs(self, tile: slice) -> list[slice]:
        """The parts of a tile of sorted vectors that are of one class each."""
        ends = [stop for stop in self._classes.stops if tile.start < stop < tile.stop]
        starts = [tile.start, *ends]
        return [slice(*run) for run in zip(starts, [*ends, tile.stop], strict=True)]

    def with_classes_of(self, other: Arrangement, other_tile: slice) -> slice:
        """The part that holds every vector of the other tile's classes."""
        if not self.sorted:
            return slice(0, len(self))
        return self._classes.slice(*other._classes.range(other_tile))

    def count_of(self, labels: Tensor) -> Tensor:
        """How many vectors here have each of the given labels."""
        ascending = self.labels if self.sorted else self.labels.sort().values
        after = torch.searchsorted(ascending, labels, right=True)
        return after - torch.searchsorted(ascending, labels)

    def _sort(self) -> None:
        absent = self.labels == IGNORED
        if not bool(absent.any()) and _ascend(self.labels):
            # A full bank: nothing to number, and of N numbers none is kept.
            self._classes = Classes.of(self.labels)
            return
        present = absent.logical_not_().nonzero().squeeze(1)
        ascending, order = self.labels[present], present
        # A bank is sorted as it stands.
        if not _ascend(ascending):
            ascending, order = ascending.sort(stable=True)
            order = present[order]
        self.labels = ascending
        self._classes = Classes.of(ascending)
        self.order = order
        gaps = (order.diff() != 1).to(torch.int64)
        self._breaks = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        self._lies_together = len(order) > 0 and not bool(gaps.any())
        self._first = int(order[0]) if len(order) else 0


def _ascend(labels: Tensor) -> bool:
    return not bool((labels[1:] < labels[:-1]).any())


def arrange_anchors(problem: Problem) -> Arrangement:
    labels = problem.labels
    if not values_cost_nothing(labels.device):
        labels = labels.masked_fill(labels == IGNORED, IGNORED_ANCHOR)
    return Arrangement(problem.anchors, labels, problem)


def arrange_entries(piece: Piece, problem: Problem) -> Arrangement:
    return Arrangement(piece.entries, piece.labels, problem)
