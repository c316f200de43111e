"""Measurements on held-out images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, Split
from benchmarks._training.network import SegmentationNetwork, full_resolution

BATCH = 16


@torch.no_grad()
def measure(network: SegmentationNetwork, split: Split, num_classes: int) -> dict[str, Any]:
    """Score a trained network on held-out images, at the labels' resolution.

    Returns:
        `"mean_iou"`, and `"class_iou"` with NaN for an absent class.
    """
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=split.labels.device)
    for start in range(0, len(split), BATCH):
        part = slice(start, start + BATCH)
        labels = split.labels[part].long()
        logits = full_resolution(network(split.network_input(part)).logits, labels)
        confusion += confusion_matrix(labels, logits.argmax(1), num_classes)
    class_iou = intersection_over_union(confusion)
    return {"mean_iou": class_iou.nanmean().item(), "class_iou": class_iou.tolist()}


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
