"""What a loss and the other ranks have to do with each other: anchors and entries of all of them.

Sizes are agreed on first, and every rank's anchors are padded to the most that one has. Padding has
the label that takes no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._ranks import Ranks, agree, gather, gather_with_gradient, pad


class OfRanks(NamedTuple):
    """(n, D) vectors of some ranks, in rank order, and their labels (n,)."""

    vectors: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Across:
    """A call of a loss that all ranks make together.

    Attributes:
        ranks: the ranks.
        num_anchors: to how many each of them pads its anchors.
        num_entries: to how many each pads what its batch contributes beside them.
        ignore_index: the label of padding.
    """

    ranks: Ranks
    num_anchors: int
    num_entries: int
    ignore_index: int

    @classmethod
    def agreed(
        cls, ranks: Ranks, what: str, anchors: Tensor, num_entries: int, ignore_index: int
    ) -> Across:
        """The most that any rank has of each; `what` is the call, the same on every rank.

        So are all of its anchors (K, D) that decides what is sent: dtype, D, and whether there is
        a backward.
        """
        kind = f"{anchors.dtype} of {anchors.shape[1]}, gradient {anchors.requires_grad}"
        sizes = agree(ranks, f"{what}, {kind}", [len(anchors), num_entries])
        most_anchors, most_entries = (max(column) for column in zip(*sizes, strict=True))
        return cls(ranks, most_anchors, most_entries, ignore_index)

    def padded(self, anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(K, D) anchors and (K,) labels, as many as every rank has."""
        return pad(anchors, self.num_anchors), self._padded_labels(labels, self.num_anchors)

    def other_anchors(self, anchors: Tensor, labels: Tensor) -> tuple[OfRanks, OfRanks, Tensor]:
        """The anchors of the ranks before this one and of those after it; the labels of all.

        Gradients reach them.
        """
        vectors, all_labels = gather_with_gradient(self.ranks, anchors, labels)
        rank = self.ranks.rank
        before, after = (
            OfRanks(vectors[part].flatten(0, 1), all_labels[part].flatten())
            for part in (slice(0, rank), slice(rank + 1, None))
        )
        return before, after, all_labels.flatten()

    def all_entries(self, entries: Tensor, labels: Tensor) -> OfRanks:
        """What the batches of all ranks contribute, in rank order, without gradient."""
        labels = self._padded_labels(labels, self.num_entries)
        vectors, all_labels = gather(self.ranks, [pad(entries, self.num_entries), labels])
        return OfRanks(vectors.flatten(0, 1), all_labels.flatten())

    def _padded_labels(self, labels: Tensor, length: int) -> Tensor:
        # Widened first: a narrow dtype may not hold the label, nor be every rank's.
        return pad(labels.to(torch.int64), length, self.ignore_index)
