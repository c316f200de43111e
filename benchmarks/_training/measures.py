"""Measurements on held-out images."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, Split
from benchmarks._training.network import SegmentationNetwork, full_resolution

BATCH = 16
BINS = 15
BORDER = 2
"""Pixels that have another label at most this many rows or columns away belong to a border."""


@torch.no_grad()
def measure(network: SegmentationNetwork, split: Split, num_classes: int) -> dict[str, Any]:
    """Score a trained network on held-out images, at the labels' resolution.

    Returns:
        `"mean_iou"`, and `"class_iou"` with NaN for an absent class. `"calibration_error"`, the
        expected calibration error of the softmax. `"border_accuracy"` and `"interior_accuracy"` of
        pixels. `"within"` and `"between"`, the mean cosine of the contrasted features of two
        pixels of one class, and of two classes: means over classes, and over pairs of classes.
    """
    found: list[tuple[Tensor, ...]] = []
    for start in range(0, len(split), BATCH):
        part = slice(start, start + BATCH)
        labels = split.labels[part].long()
        outputs = network(split.network_input(part))
        softmax = full_resolution(outputs.logits, labels).softmax(1)
        confidence, predicted = softmax.max(1)
        found.append(
            (
                confusion_matrix(labels, predicted, num_classes),
                calibration_bins(confidence, predicted, labels),
                hits_by_place(predicted, labels),
                *class_sums(outputs.features, labels, num_classes),
            )
        )
    confusion, bins, places, sums, counts = (
        torch.stack(parts).sum(0) for parts in zip(*found, strict=True)
    )
    class_iou = intersection_over_union(confusion)
    within, between = similarities(sums, counts)
    border, interior = (places[:, 0] / places[:, 1]).tolist()
    return {
        "mean_iou": class_iou.nanmean().item(),
        "class_iou": class_iou.tolist(),
        "calibration_error": ((bins[1] - bins[2]).abs().sum() / bins[0].sum()).item(),
        "border_accuracy": border,
        "interior_accuracy": interior,
        "within": within,
        "between": between,
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


def calibration_bins(confidence: Tensor, predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the count, the summed confidence and the hits of the pixels of each bin, (3, BINS)."""
    valid = labels != IGNORE_INDEX
    confidence, hits = confidence[valid].double(), (predicted == labels)[valid].double()
    values = torch.stack([torch.ones_like(hits), confidence, hits])
    index = (confidence * BINS).long().clamp_max(BINS - 1)
    return values.new_zeros(3, BINS).index_add_(1, index, values)


def hits_by_place(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return the hits and the number of pixels, near a border and elsewhere, (2, 2)."""
    values, size = labels.float(), 2 * BORDER + 1
    highest, lowest = (F.max_pool2d(one, size, 1, BORDER) for one in (values, -values))
    valid, at_border, hits = labels != IGNORE_INDEX, highest != -lowest, predicted == labels
    places = (valid & at_border, valid & ~at_border)
    return torch.stack([torch.stack([hits[place].sum(), place.sum()]) for place in places]).double()


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum the unit features of each class, and count its pixels, at the features' resolution."""
    small = F.interpolate(labels[:, None].float(), features.shape[-2:], mode="nearest").long()
    small = small.flatten()
    valid = small != IGNORE_INDEX
    vectors = F.normalize(features, dim=1).movedim(1, -1).flatten(0, -2)[valid].double()
    sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add_(0, small[valid], vectors)
    return sums, torch.bincount(small[valid], minlength=num_classes).double()


def similarities(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Return the mean cosines within and between classes, of all pairs of pixels."""
    known = counts > 1
    sums, counts = sums[known], counts[known]
    products = sums @ sums.T
    within = (products.diagonal() - counts) / (counts * (counts - 1))
    between = products / counts.outer(counts)
    apart = ~torch.eye(len(counts), dtype=torch.bool, device=counts.device)
    return within.mean().item(), between[apart].mean().item()
