"""Measurements on held-out images: IoU, and the similarity of classes in the embedding space."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import (
    Outputs,
    SegmentationNetwork,
    full_resolution,
    nearest_labels,
)

BATCH = 16


class ClassSums:
    """Sum and number of the unit-length vectors of each class.

    The sum of all a·b over two sets is the dot product of the sets' sums, so the mean similarity
    of all pairs of pixels needs no sampling.
    """

    def __init__(self, num_classes: int, channels: int, device: torch.device | None = None) -> None:
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (B, D, H, W) with labels (B, H, W) of any resolution."""
        labels = nearest_labels(labels, vectors)
        valid = labels != IGNORE_INDEX
        selected = F.normalize(vectors.movedim(1, -1)[valid], dim=1).double()
        self.sums.index_add_(0, labels[valid], selected)
        self.counts += torch.bincount(labels[valid], minlength=len(self.counts))

    def similarity(self) -> dict[str, float]:
        """Average over classes and over pairs of classes, so that rare classes count equally."""
        count = self.counts
        means = self.sums / count[:, None]  # 0 / 0 is the NaN of an absent class
        # A pixel with itself, similarity 1, is not a pair.
        within = (self.sums.square().sum(1) - count) / (count * (count - 1))
        within = torch.where(count > 1, within, math.nan).nanmean()
        others = ~torch.eye(len(means), dtype=torch.bool, device=means.device)
        between = (means @ means.T)[others].nanmean()
        return {"within": within.item(), "between": between.item()}


@torch.no_grad()
def measure(network: SegmentationNetwork, data: SegmentationData) -> dict[str, Any]:
    """Score a trained network on the held-out images, at the labels' resolution.

    Returns:
        `"mean_iou"`, `"class_iou"` with NaN for an absent class, and the mean similarities of
        pixels `"within"` a class and `"between"` classes of the `"trunk"` and the `"projection"`.
    """
    device, num_classes = data.heldout.labels.device, data.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    head = network.projection
    trunk, projection = (ClassSums(num_classes, n, device) for n in (head.in_channels, head.dim))
    for outputs, labels in predict(network, data.heldout):
        predicted = full_resolution(outputs.logits, labels).argmax(1)
        confusion += confusion_matrix(labels, predicted, num_classes)
        trunk.add(outputs.features, labels)
        projection.add(outputs.embedding, labels)
    class_iou = intersection_over_union(confusion)
    return {
        "mean_iou": class_iou.nanmean().item(),
        "class_iou": class_iou.tolist(),
        "trunk": trunk.similarity(),
        "projection": projection.similarity(),
    }


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pixels by label and predicted class, without ignored ones."""
    valid = labels != IGNORE_INDEX
    pairs = labels[valid] * num_classes + predicted[valid]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Compute the IoU of each class; NaN for a class without labels, which no mean includes."""
    hits = confusion.diagonal().double()
    labelled = confusion.sum(1)
    union = labelled + confusion.sum(0) - confusion.diagonal()
    return torch.where(labelled > 0, hits / union, math.nan)


def predict(network: SegmentationNetwork, split: Split) -> Iterator[tuple[Outputs, Tensor]]:
    """Yield the outputs for a split, a few images at a time, with their labels."""
    for start in range(0, len(split), BATCH):
        part = slice(start, start + BATCH)
        yield network(split.network_input(part)), split.labels[part].long()
