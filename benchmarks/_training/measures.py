"""What is measured on held-out images: IoU, and how the classes lie in the embedding space."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Similarity:
    """Mean cosine similarity over all pairs of pixels, of one class and of two."""

    within: float
    between: float


@dataclass(frozen=True)
class Measured:
    """One arm on the held-out images. A class they do not show has no IoU: NaN."""

    mean_iou: float
    class_iou: list[float]
    trunk: Similarity
    projection: Similarity


class ClassSums:
    """Sum and number of the unit-length vectors of each class.

    That is all the mean similarity of pairs needs: the sum of all a·b over two sets is the dot
    product of the sets' sums, so every pair of pixels counts and none is sampled.
    """

    def __init__(self, num_classes: int, channels: int, device: torch.device | None = None) -> None:
        self.sums = torch.zeros(num_classes, channels, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add vectors (B, D, H, W) under labels (B, H, W) of the same resolution."""
        valid = labels != IGNORE_INDEX
        chosen = F.normalize(vectors.movedim(1, -1)[valid], dim=1).double()
        self.sums.index_add_(0, labels[valid], chosen)
        self.counts += torch.bincount(labels[valid], minlength=len(self.counts))

    def matrix(self) -> Tensor:
        """(C, C) mean similarity of the pairs of each two classes; NaN where there is no pair."""
        # 0 / 0, of a class that no pixel shows, is the NaN that is wanted.
        means = self.sums / self.counts[:, None]
        products = means @ means.T
        # A pixel's pair with itself, similarity 1, is no pair.
        count = self.counts
        within = (self.sums.square().sum(1) - count) / (count * (count - 1))
        products.diagonal().copy_(torch.where(count > 1, within, math.nan))
        return products

    def similarity(self) -> Similarity:
        """The mean over classes, and over pairs of classes: rare ones count like common ones."""
        matrix = self.matrix()
        between = matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]
        return Similarity(matrix.diagonal().nanmean().item(), between.nanmean().item())


@torch.no_grad()
def measure(network: SegmentationNetwork, data: SegmentationData) -> Measured:
    """Score a trained network on the held-out images, at the labels' resolution."""
    device = data.heldout.labels.device
    confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=device)
    trunk: ClassSums | None = None
    projection: ClassSums | None = None
    for outputs, labels in predict(network, data.heldout):
        predicted = full_resolution(outputs.logits, labels).argmax(1)
        confusion += confusion_matrix(labels, predicted, data.num_classes)
        if trunk is None or projection is None:
            trunk = ClassSums(data.num_classes, outputs.features.shape[1], device)
            projection = ClassSums(data.num_classes, outputs.embedding.shape[1], device)
        coarse = nearest_labels(labels, outputs.features)
        trunk.add(outputs.features, coarse)
        projection.add(outputs.embedding, coarse)
    if trunk is None or projection is None:
        raise ValueError("there are no held-out images to measure on")
    class_iou = intersection_over_union(confusion)
    return Measured(
        mean_iou=class_iou.nanmean().item(),
        class_iou=class_iou.tolist(),
        trunk=trunk.similarity(),
        projection=projection.similarity(),
    )


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (label, predicted class), those to ignore left out."""
    valid = labels != IGNORE_INDEX
    pairs = labels[valid] * num_classes + predicted[valid]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """IoU per class; NaN for a class that no label shows, which then is in no mean."""
    hits = confusion.diagonal().double()
    labelled = confusion.sum(1)
    union = labelled + confusion.sum(0) - confusion.diagonal()
    return torch.where(labelled > 0, hits / union, math.nan)


def predict(network: SegmentationNetwork, split: Split) -> Iterator[tuple[Outputs, Tensor]]:
    """What the network says of a split, a few images at a time, beside their labels."""
    for start in range(0, len(split), BATCH):
        part = slice(start, start + BATCH)
        yield network(split.network_input(part)), split.labels[part].long()
