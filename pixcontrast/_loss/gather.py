"""Anchors and contrast entries of all ranks, for a loss that is called on every rank.

The ranks exchange their sizes first. Each rank pads its anchors and entries to the largest size.
Padding is labelled `IGNORED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, gather_with_gradient, pad
from pixcontrast._loss.batch import Anchors
from pixcontrast._tensors import IGNORED


class Labelled(NamedTuple):
    """Vectors (n, D) and their int64 labels (n,)."""

    vectors: Tensor
    labels: Tensor


@dataclass(frozen=True)
class JointCall:
    """One call of a loss that all ranks make together.

    Attributes:
        ranks (Ranks): the ranks.
        num_anchors (int): number of anchors of each rank, with padding.
        num_entries (int): number of batch entries of each rank, with padding.
        num_images (int): largest number of images of a rank.
    """

    ranks: Ranks
    num_anchors: int
    num_entries: int
    num_images: int

    @classmethod
    def exchange_sizes(
        cls, ranks: Ranks, call: str, anchors: Tensor, num_entries: int, num_images: int
    ) -> JointCall:
        """Exchange the sizes of all ranks, and use the largest.

        Args:
            ranks (Ranks): the ranks.
            call (str): description of the call. It must be the same on every rank.
            anchors (Tensor): anchors of this rank, shape (K, D). Their dtype, D and
                `requires_grad` determine the messages, so they must be the same on every rank.
            num_entries (int): number of entries that the batch of this rank contributes.
            num_images (int): number of images of this rank.
        """
        kind = f"{anchors.dtype} of {anchors.shape[1]}, gradient {anchors.requires_grad}"
        sizes = agree(ranks, f"{call}, {kind}", [len(anchors), num_entries, num_images])
        return cls(ranks, *(max(column) for column in zip(*sizes, strict=True)))

    def pad_anchors(self, anchors: Anchors) -> Anchors:
        """Pad anchors to `num_anchors`."""
        vectors, labels, weight, images = anchors
        return Anchors(
            pad(vectors, self.num_anchors),
            pad(labels, self.num_anchors, IGNORED),
            None if weight is None else pad(weight, self.num_anchors),
            None if images is None else pad(images, self.num_anchors),
        )

    def other_anchors(self, anchors: Anchors) -> tuple[Labelled, Labelled, Tensor]:
        """Gather the padded anchors of all ranks, with gradient.

        Returns:
            The anchors of the ranks before this one, those of the ranks after this one, and the
            labels of all anchors.
        """
        vectors, labels = gather_with_gradient(self.ranks, anchors.vectors, anchors.labels)
        rank = self.ranks.rank
        before, after = (
            Labelled(vectors[others].flatten(0, 1), labels[others].flatten())
            for others in (slice(0, rank), slice(rank + 1, None))
        )
        return before, after, labels.flatten()

    def all_entries(self, entries: Labelled) -> Labelled:
        """Gather the batch entries of all ranks in rank order, without gradient."""
        vectors, labels = entries
        padded = [pad(vectors, self.num_entries), pad(labels, self.num_entries, IGNORED)]
        all_vectors, all_labels = gather(self.ranks, padded)
        return Labelled(all_vectors.flatten(0, 1), all_labels.flatten())
