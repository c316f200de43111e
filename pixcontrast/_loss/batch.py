"""The batch of one call of a loss, and the anchors taken from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._pixels.maps import as_map, flat_map, flat_predictions, take_pixels
from pixcontrast._tensors import IGNORED, mark_ignored, unit_length
from pixcontrast.samplers import AnchorSample


class Batch(NamedTuple):
    """The arguments of a call, at the size of the embedding.

    Attributes:
        emb_map: embedding map, shape (B, D, *S).
        labels: int64 labels, `IGNORED` for ignored pixels, shape (B, P).
        preds: predicted classes, shape (B, P), or None.
        weight: weight of each pixel, shape (B, P), or None.
    """

    emb_map: Tensor
    labels: Tensor
    preds: Tensor | None
    weight: Tensor | None


class Anchors(NamedTuple):
    """The anchors of a call.

    Attributes:
        vectors: embeddings, shape (K, D).
        labels: int64 labels, `IGNORED` for padding, shape (K,).
        weight: weights, shape (K,), or None.
    """

    vectors: Tensor
    labels: Tensor
    weight: Tensor | None


def prepare(
    emb: Tensor,
    labels: Tensor,
    preds: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    num_classes: int | None,
) -> Batch:
    """Bring checked arguments to the size of the embedding, and mark ignored labels."""
    emb_map = as_map(emb)
    size = emb_map.shape[2:]
    weight = None if weight is None else flat_map(weight, size)
    return Batch(
        emb_map,
        mark_ignored(flat_map(labels, size), ignore_index, num_classes, weight),
        None if preds is None else flat_predictions(preds, size),
        weight,
    )


def take_anchors(
    batch: Batch, sample: AnchorSample, ignore_index: int, *, normalize: bool
) -> Anchors:
    """Take the embeddings, labels and weights of the sampled pixels."""
    vectors = take_pixels(batch.emb_map, sample.indices)
    check.check_vector_labels("anchor_labels", sample.labels, "anchors", vectors)
    labels = mark_ignored(sample.labels, ignore_index)
    # Padding has index 0. Replace that pixel by zeros: its embedding must not matter.
    vectors = torch.where((labels != IGNORED)[:, None], vectors, 0.0)
    return Anchors(
        unit_length(vectors) if normalize else vectors,
        labels,
        None if batch.weight is None else batch.weight.flatten()[sample.indices],
    )
