"""Anchors and contrast entries of all ranks, for a loss that is called on every rank.

The ranks exchange their sizes first. Each rank pads its anchors and entries to the largest size;
the labels of the padding are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, gather_with_gradient, pad


class OfRanks(NamedTuple):
    """Vectors (n, D) of several ranks, in rank order, and their labels (n,)."""

    vectors: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Across:
    """One call of a loss that all ranks make together.

    Attributes:
        ranks (Ranks): the ranks.
        num_anchors (int): number of anchors of each rank, with padding.
        num_entries (int): number of batch entries of each rank, with padding.
        ignore_index (int): label of the padding.
    """

    ranks: Ranks
    num_anchors: int
    num_entries: int
    ignore_index: int

    @classmethod
    def agreed(
        cls, ranks: Ranks, call: str, anchors: Tensor, num_entries: int, ignore_index: int
    ) -> Across:
        """Exchange the sizes of all ranks and take the largest.

        Args:
            ranks (Ranks): the ranks.
            call (str): description of the call. It must be the same on every rank.
            anchors (Tensor): anchors of this rank, shape (K, D). Their dtype, D and
                `requires_grad` determine the messages, so they must be the same on every rank.
            num_entries (int): number of entries that the batch of this rank contributes.
            ignore_index (int): label of the padding.
        """
        kind = f"{anchors.dtype} of {anchors.shape[1]}, gradient {anchors.requires_grad}"
        sizes = agree(ranks, f"{call}, {kind}", [len(anchors), num_entries])
        max_anchors, max_entries = (max(column) for column in zip(*sizes, strict=True))
        return cls(ranks, max_anchors, max_entries, ignore_index)

    def padded(self, anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pad anchors (K, D) and labels (K,) to `num_anchors`."""
        return pad(anchors, self.num_anchors), self._padded_labels(labels, self.num_anchors)

    def other_anchors(self, anchors: Tensor, labels: Tensor) -> tuple[OfRanks, OfRanks, Tensor]:
        """Gather the anchors of all ranks, with gradient.

        Returns:
            The anchors of the ranks before this one, those of the ranks after this one, and the
            labels of all anchors.
        """
        vectors, all_labels = gather_with_gradient(self.ranks, anchors, labels)
        rank = self.ranks.rank
        before, after = (
            OfRanks(vectors[others].flatten(0, 1), all_labels[others].flatten())
            for others in (slice(0, rank), slice(rank + 1, None))
        )
        return before, after, all_labels.flatten()

    def all_entries(self, entries: Tensor, labels: Tensor) -> OfRanks:
        """Gather the batch entries of all ranks in rank order, without gradient."""
        labels = self._padded_labels(labels, self.num_entries)
        vectors, all_labels = gather(self.ranks, [pad(entries, self.num_entries), labels])
        return OfRanks(vectors.flatten(0, 1), all_labels.flatten())

    def _padded_labels(self, labels: Tensor, length: int) -> Tensor:
        # Convert first: a narrow dtype may not hold the label, and dtypes may differ between ranks.
        return pad(labels.to(torch.int64), length, self.ignore_index)
