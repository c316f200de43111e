"""The batch of one call of a loss, and the embeddings of its sampled pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._pixels.maps import as_map, flat_map, flat_predictions, take_pixels
from pixcontrast._pixels.regions import Regions, region_means
from pixcontrast._tensors import IGNORED, mark_ignored, unit_length
from pixcontrast.samplers import AnchorSample


class Anchors(NamedTuple):
    """The anchors of a call.

    Attributes:
        vectors: embeddings, shape (K, D).
        labels: int64 labels, `IGNORED` for padding, shape (K,).
        weight: weights, shape (K,), or None.
        images: image of each anchor, shape (K,).
    """

    vectors: Tensor
    labels: Tensor
    weight: Tensor | None
    images: Tensor


@dataclass(frozen=True)
class Batch:
    """The arguments of a call, at the size of the feature map.

    Attributes:
        features (Tensor): shape (B, C, *S): the embedding map, or the input of `projection`.
        projection (Module, optional): maps feature rows (n, C) to embeddings (n, D). None: the
            features are the embeddings.
        labels (Tensor): int64 labels, `IGNORED` for ignored pixels, shape (B, P).
        preds (Tensor, optional): predicted classes, shape (B, P).
        weight (Tensor, optional): weight of each pixel, shape (B, P).
    """

    features: Tensor
    projection: nn.Module | None
    labels: Tensor
    preds: Tensor | None
    weight: Tensor | None

    @classmethod
    def of(
        cls,
        features: Tensor,
        projection: nn.Module | None,
        labels: Tensor,
        preds: Tensor | None,
        weight: Tensor | None,
        ignore_index: int,
        num_classes: int | None,
    ) -> Batch:
        """Bring checked arguments to the size of the features, and mark ignored labels."""
        feature_map = as_map(features)
        size = feature_map.shape[2:]
        flat_labels = mark_ignored(flat_map(labels, size), ignore_index, num_classes)
        if weight is not None:
            weight = flat_map(weight, size)
            flat_labels = flat_labels.masked_fill(weight == 0, IGNORED)
        flat_preds = None if preds is None else flat_predictions(preds, size)
        return cls(feature_map, projection, flat_labels, flat_preds, weight)

    def embed(self, anchors: Tensor, others: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Embed pixels, in one call of the projection.

        Args:
            anchors (Tensor): flat indices of the anchors, shape (K,).
            others (Tensor): flat indices of pixels that need no gradient, shape (n,).
            valid (Tensor): which of all these pixels are valid, shape (K + n,).

        Returns:
            Embeddings of the anchors, shape (K, D), and of the others, detached, shape (n, D). The
            embeddings of pixels that are not valid are arbitrary.
        """
        if self.projection is not None:
            # Padding would count in batch statistics: repeat valid pixels instead.
            indices = _replace_invalid(torch.cat([anchors, others]), valid, self.labels.numel())
            anchors, others = indices.split([len(anchors), len(others)])
        rows = take_pixels(self.features, anchors)
        if self.projection is None:
            return rows, take_pixels(self.features.detach(), others)
        other_rows = take_pixels(self.features.detach(), others)
        embeddings = self.projection(torch.cat([rows, other_rows]))
        check.check_projected("projection", embeddings, len(valid))
        rows, other_rows = embeddings.split([len(anchors), len(others)])
        return rows, other_rows.detach()

    def region_means(self, slots: Tensor, num_slots: int) -> Regions:
        """Compute the region of each slot from the embeddings of all pixels, detached."""
        return region_means(self.features.detach(), slots, num_slots, self.projection)


def _replace_invalid(indices: Tensor, valid: Tensor, num_pixels: int) -> Tensor:
    """Replace indices (n,) that are not valid by repeating the valid ones in turn.

    If none is valid, replace them by indices that are spread over all pixels.
    """
    position = torch.arange(len(indices), device=indices.device)
    num_valid = valid.sum()
    # A stable sort: the result must not depend on the device's sorting algorithm.
    valid_first = (~valid).to(torch.uint8).argsort(stable=True)
    repeated = indices[valid_first[position % num_valid.clamp(min=1)]]
    spread = position * num_pixels // max(len(indices), 1)
    return torch.where(valid, indices, torch.where(num_valid > 0, repeated, spread))


def as_anchors(
    batch: Batch, sample: AnchorSample, vectors: Tensor, labels: Tensor, *, normalize: bool
) -> Anchors:
    """Combine the embeddings and marked labels of the sampled pixels with their weights."""
    # Padding has index 0. Replace that pixel by zeros: its embedding must not matter.
    vectors = torch.where((labels != IGNORED)[:, None], vectors, 0.0)
    return Anchors(
        unit_length(vectors) if normalize else vectors,
        labels,
        None if batch.weight is None else batch.weight.flatten()[sample.indices],
        sample.indices // max(batch.labels.shape[1], 1),
    )
