"""The picture of how alike the classes are: mean cosine similarity of their pixels."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import ClassSums, predict
from benchmarks._training.network import SegmentationNetwork, nearest_labels

TITLES = {"plain": "trunk, cross entropy", "contrast": "trunk, with contrast"}


@torch.no_grad()
def class_similarity(network: SegmentationNetwork, data: SegmentationData) -> Tensor:
    """(C, C) mean similarity of the trunk's features, over all pairs of held-out pixels."""
    sums: ClassSums | None = None
    for outputs, labels in predict(network, data.heldout):
        if sums is None:
            sums = ClassSums(data.num_classes, outputs.features.shape[1], labels.device)
        sums.add(outputs.features, nearest_labels(labels, outputs.features))
    assert sums is not None  # no data set is empty
    return sums.matrix()


def save_class_similarity(path: Path, data: SegmentationData, matrices: dict[str, Tensor]) -> None:
    """Draw both matrices on one scale, and what contrast changed on another."""
    plain, contrast = matrices["plain"], matrices["contrast"]
    drawn = [(TITLES[arm], matrix, "viridis", (0.0, 1.0)) for arm, matrix in matrices.items()]
    change = contrast - plain
    most = float(change.nan_to_num().abs().max().clamp(min=1e-3))
    drawn.append(("difference", change, "RdBu_r", (-most, most)))
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.7), layout="constrained")
    for axis, (title, matrix, colours, (low, high)) in zip(axes, drawn, strict=True):
        image = axis.imshow(matrix.numpy(), cmap=colours, vmin=low, vmax=high)
        axis.set_title(title, fontsize=10)
        numbers = range(data.num_classes)
        axis.set_xticks(numbers, labels=data.class_names, rotation=90, fontsize=7)
        axis.set_yticks(numbers, labels=data.class_names, fontsize=7)
        figure.colorbar(image, ax=axis, shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
