"""Vectors sorted by class, without copying them, so that most tiles need no mask.

On the CPU, the host can read labels without waiting: ignored vectors are left out, and the ranges
of the classes are known. On other devices the vectors keep their order, and the methods return what
holds for any labels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._tensors import IGNORED

# Where ignored anchors are not left out, their label must differ from that of ignored entries.
IGNORED_ANCHOR = IGNORED - 1
_ANY_LABEL = (IGNORED_ANCHOR, torch.iinfo(torch.int64).max)


def reads_are_free(device: torch.device) -> bool:
    """Return whether the host can read a value of this device without waiting."""
    return device.type == "cpu"


class ClassOrder:
    """Anchors or the entries of a contrast tensor (n, D), in the order of their classes.

    Attributes:
        vectors (Tensor): (n, D), unchanged.
        labels (Tensor): (m,) in the new order; m < n if ignored vectors are left out.
        sorted (bool): whether labels ascend and no ignored vector is left.
        is_anchors (bool): whether these are the anchors as entries, in the same order.
    """

    def __init__(
        self, problem: Problem, vectors: Tensor, labels: Tensor, is_anchors: bool, first_id: int
    ) -> None:
        self.vectors = vectors
        self.labels = labels
        self.sorted = reads_are_free(labels.device)
        self.is_anchors = is_anchors
        self._problem = problem
        self._first_id = first_id
        self._order: Tensor | None = None  # index of each vector in `vectors`; None: unchanged
        # The classes in ascending order, and where each starts and stops.
        self._classes: list[int] = []
        self._starts: list[int] = []
        self._stops: list[int] = []
        if self.sorted:
            self._sort()

    @classmethod
    def of_anchors(cls, problem: Problem) -> ClassOrder:
        """Order the anchors of a problem."""
        labels = problem.labels
        if not reads_are_free(labels.device):
            labels = labels.masked_fill(labels == IGNORED, IGNORED_ANCHOR)
        return cls(problem, problem.anchors, labels, False, problem.first_anchor_id)

    @classmethod
    def of_contrast(cls, problem: Problem, wanted: Sequence[bool]) -> dict[int, ClassOrder]:
        """Order the entries of the `wanted` contrast tensors, by their index."""
        return {
            index: cls(problem, *tensor)
            for index, (tensor, want) in enumerate(zip(problem.contrast, wanted, strict=True))
            if want
        }

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
        if self._order is None or tile.start == tile.stop:
            return tile
        if self._gaps[tile.start] == self._gaps[tile.stop - 1]:
            first = int(self._order[tile.start])
            return slice(first, first + tile.stop - tile.start)
        return self._order[tile]

    def all_indices(self) -> Tensor:
        """Return the index of each vector in `vectors`, (m,) int64."""
        if self._order is not None:
            return self._order
        return torch.arange(len(self), device=self.labels.device)

    def ids(self) -> Tensor:
        """Return the ids from which random keys are computed, (m,) int64."""
        return self.all_indices() + self._first_id

    def may_share_class(self, tile: slice, other: ClassOrder, other_tile: slice) -> bool:
        """Return False only if no class of one tile is in the other and no vector is ignored."""
        first, last = self._labels_in(tile)
        other_first, other_last = other._labels_in(other_tile)
        return first <= other_last and other_first <= last

    def is_one_class(self, tile: slice) -> bool:
        """Return whether a tile is known to consist of one class."""
        first, last = self._labels_in(tile)
        return first == last

    def long_classes(self, length: int) -> list[slice]:
        """Return the known ranges of the classes of at least `length` vectors."""
        ends = zip(self._starts, self._stops, strict=True)
        return [slice(start, stop) for start, stop in ends if stop - start >= length]

    def classes_in(self, tile: slice) -> list[slice]:
        """Split a tile of sorted vectors into slices of one class each."""
        ends = [stop for stop in self._stops if tile.start < stop < tile.stop]
        starts = [tile.start, *ends]
        return [slice(*one) for one in zip(starts, [*ends, tile.stop], strict=True)]

    def slice_with_classes_of(self, other: ClassOrder, other_tile: slice) -> slice:
        """Return a slice that contains every vector of the classes in the other's tile."""
        if not self.sorted:
            return slice(0, len(self))
        first, last = other._labels_in(other_tile)
        start, stop = bisect_left(self._classes, first), bisect_right(self._classes, last)
        return slice(self._starts[start], self._stops[stop - 1]) if start < stop else slice(0, 0)

    def count_of(self, labels: Tensor) -> Tensor:
        """Return the number of vectors with each of the given labels."""
        ascending = self.labels if self.sorted else self.labels.sort().values
        after = torch.searchsorted(ascending, labels, right=True)
        return after - torch.searchsorted(ascending, labels)

    def _labels_in(self, tile: slice) -> tuple[int, int]:
        """Return bounds of the labels in a non-empty tile, the exact ones if they are known."""
        if not self.sorted:
            return _ANY_LABEL
        first = bisect_right(self._stops, tile.start)
        last = bisect_right(self._stops, tile.stop - 1)
        return self._classes[first], self._classes[last]

    def _sort(self) -> None:
        ignored = self.labels == IGNORED
        # A full bank is sorted already and needs no indices.
        if bool(ignored.any()) or not _ascends(self.labels):
            order = ignored.logical_not_().nonzero().squeeze(1)
            self.labels = self.labels[order]
            if not _ascends(self.labels):
                self.labels, permutation = self.labels.sort(stable=True)
                order = order[permutation]
            self._order = order
            # Number of gaps before each vector. Vectors with equal numbers are adjacent in memory.
            gaps = (order.diff() != 1).to(torch.int64)
            self._gaps = torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])
        if len(self) > 0:
            # Compare labels as bool, not int64: a bank has many entries.
            changes = self.labels[1:] != self.labels[:-1]
            self._starts = [0, *(changes.nonzero().squeeze(1) + 1).tolist()]
            self._stops = [*self._starts[1:], len(self)]
            self._classes = self.labels[self._starts].tolist()


def masks_of(anchors: ClassOrder, block: slice, entries: ClassOrder, columns: slice) -> Masks:
    """Return the masks of the entries `columns` for the anchors `block`."""
    labels = entries.labels[columns]
    positive = anchors.labels[block][:, None] == labels[None, :]
    negative = positive.logical_not()
    if not entries.sorted:
        negative &= labels >= 0
    if entries.is_anchors:
        rows = torch.arange(block.start, block.stop, device=labels.device)
        positive &= rows[:, None] != torch.arange(columns.start, columns.stop, device=labels.device)
    return Masks(positive, negative)


def _ascends(labels: Tensor) -> bool:
    return not bool((labels[1:] < labels[:-1]).any())
