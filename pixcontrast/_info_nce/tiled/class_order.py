"""Vectors sorted by class, without copying them, so that most tiles need no mask.

On the CPU, reading a value costs nothing: ignored vectors are left out, and the ranges of the
classes are known. On any other device reading a value makes the host wait. There the vectors keep
their order, and every question is answered so that it holds for any labels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import ContrastTensor, Problem
from pixcontrast._tensors import IGNORED

# Ignored anchors that keep their place need a label that no entry has, not even an ignored one.
IGNORED_ANCHOR = IGNORED - 1


def reads_are_free(device: torch.device) -> bool:
    """Return whether the host can read a value of this device without waiting."""
    return device.type == "cpu"


class ClassRanges(NamedTuple):
    """The range of each class in sorted labels, as lists of the host.

    Attributes:
        labels: the classes, ascending.
        starts, stops: index range of each class.
    """

    labels: list[int]
    starts: list[int]
    stops: list[int]

    @classmethod
    def of(cls, ascending: Tensor) -> ClassRanges:
        """Find the ranges in ascending labels (n,)."""
        if len(ascending) == 0:
            return cls([], [], [])
        # A bool for each vector: a bank has many.
        starts = [0, *((ascending[1:] != ascending[:-1]).nonzero().squeeze(1) + 1).tolist()]
        return cls(ascending[starts].tolist(), starts, [*starts[1:], len(ascending)])

    def labels_of(self, tile: slice) -> tuple[int, int]:
        """Return the least and the largest label of a non-empty tile."""
        first, last = bisect_right(self.stops, tile.start), bisect_right(self.stops, tile.stop - 1)
        return self.labels[first], self.labels[last]

    def slice_of(self, first: int, last: int) -> slice:
        """Return the slice of the labels from `first` to `last`."""
        start, stop = bisect_left(self.labels, first), bisect_right(self.labels, last)
        if start == stop:
            return slice(0, 0)
        return slice(self.starts[start], self.stops[stop - 1])


class ClassOrder:
    """(n, D) vectors in the order of their classes, where the host may know it.

    Attributes:
        vectors (Tensor): (n, D), unchanged.
        labels (Tensor): (m,) in the new order; m < n if ignored vectors are left out.
        order (Tensor, optional): (m,) index of each vector in `vectors`; None: unchanged order.
        sorted (bool): whether labels ascend and no ignored vector is left.
    """

    def __init__(self, vectors: Tensor, labels: Tensor, problem: Problem) -> None:
        self.vectors = vectors
        self._problem = problem
        self.labels = labels
        self.order: Tensor | None = None
        self._ranges = ClassRanges([], [], [])
        self.sorted = reads_are_free(labels.device)
        if self.sorted:
            self._sort()

    @classmethod
    def of_anchors(cls, problem: Problem) -> ClassOrder:
        """Order the anchors of a problem."""
        labels = problem.labels
        if not reads_are_free(labels.device):
            labels = labels.masked_fill(labels == IGNORED, IGNORED_ANCHOR)
        return cls(problem.anchors, labels, problem)

    @classmethod
    def of_entries(cls, contrast: ContrastTensor, problem: Problem) -> ClassOrder:
        """Order the entries of a contrast tensor."""
        return cls(contrast.entries, contrast.labels, problem)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def operands(self, tile: slice) -> Tensor:
        """Return the vectors of a tile as operands: a view if they are adjacent, else a copy."""
        operand = self._problem.operand(self.vectors[self.indices(tile)])
        if self.sorted:
            return operand
        # Ignored vectors may contain NaN; mask them because 0 · NaN is NaN.
        return torch.where((self.labels[tile] >= 0)[:, None], operand, 0.0)

    def indices(self, tile: slice) -> slice | Tensor:
        """Return the indices of a tile's vectors in `vectors`."""
        if self.order is None or tile.start == tile.stop:
            return tile
        if self._gaps[tile.start] == self._gaps[tile.stop - 1]:
            first = int(self.order[tile.start])
            return slice(first, first + tile.stop - tile.start)
        return self.order[tile]

    def all_indices(self) -> Tensor:
        """Return the index of each vector in `vectors`, (m,) int64."""
        if self.order is not None:
            return self.order
        return torch.arange(len(self), device=self.labels.device)

    def may_share_class(self, tile: slice, other: ClassOrder, other_tile: slice) -> bool:
        """Return False only if no class of one tile is in the other and no vector is ignored."""
        if not self.sorted:
            return True
        first, last = self._ranges.labels_of(tile)
        other_first, other_last = other._ranges.labels_of(other_tile)
        return first <= other_last and other_first <= last

    def is_one_class(self, tile: slice) -> bool:
        """Return whether a tile is known to consist of one class."""
        if not self.sorted:
            return False
        first, last = self._ranges.labels_of(tile)
        return first == last

    def long_classes(self, length: int) -> list[slice]:
        """Return the known ranges of the classes of at least `length` vectors."""
        ends = zip(self._ranges.starts, self._ranges.stops, strict=True)
        return [slice(start, stop) for start, stop in ends if stop - start >= length]

    def classes_in(self, tile: slice) -> list[slice]:
        """Split a tile of sorted vectors into slices of one class each."""
        ends = [stop for stop in self._ranges.stops if tile.start < stop < tile.stop]
        starts = [tile.start, *ends]
        return [slice(*one) for one in zip(starts, [*ends, tile.stop], strict=True)]

    def slice_with_classes_of(self, other: ClassOrder, other_tile: slice) -> slice:
        """Return a slice that contains every vector of the classes in the other's tile."""
        if not self.sorted:
            return slice(0, len(self))
        return self._ranges.slice_of(*other._ranges.labels_of(other_tile))

    def count_of(self, labels: Tensor) -> Tensor:
        """Return the number of vectors with each of the given labels."""
        ascending = self.labels if self.sorted else self.labels.sort().values
        after = torch.searchsorted(ascending, labels, right=True)
        return after - torch.searchsorted(ascending, labels)

    def _sort(self) -> None:
        ignored = self.labels == IGNORED
        if not bool(ignored.any()) and _ascends(self.labels):
            # A full bank is sorted: its indices need no memory.
            self._ranges = ClassRanges.of(self.labels)
            return
        present = ignored.logical_not_().nonzero().squeeze(1)
        ascending, order = self.labels[present], present
        if not _ascends(ascending):
            ascending, order = ascending.sort(stable=True)
            order = present[order]
        self.labels = ascending
        self._ranges = ClassRanges.of(ascending)
        self.order = order
        # Vectors with the same number of gaps before them are adjacent in memory.
        gaps = (order.diff() != 1).to(torch.int64)
        self._gaps = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])


def masks_of(
    anchors: ClassOrder, block: slice, entries: ClassOrder, columns: slice, *, is_anchors: bool
) -> Masks:
    """Return which of some entries are positives and negatives of a block of anchors.

    `is_anchors` says that the entries are the anchors, in the same order.
    """
    labels = entries.labels[columns]
    positive = anchors.labels[block][:, None] == labels[None, :]
    negative = positive.logical_not()
    if not entries.sorted:
        negative &= labels >= 0
    if is_anchors:
        rows = torch.arange(block.start, block.stop, device=labels.device)
        positive &= rows[:, None] != torch.arange(columns.start, columns.stop, device=labels.device)
    return Masks(positive, negative)


def _ascends(labels: Tensor) -> bool:
    return not bool((labels[1:] < labels[:-1]).any())
