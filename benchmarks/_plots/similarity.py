"""How similar the classes are: the mean cosine similarity of their pixels, as matrices."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from benchmarks._plots.canvas import grid, save
from benchmarks._training.data import SegmentationData


def save_similarity(path: Path, data: SegmentationData, plain: Tensor, contrast: Tensor) -> None:
    """Draw the matrices (C, C) without and with contrast on one scale, and their difference."""
    change = contrast - plain
    most = float(change.nan_to_num().abs().max().clamp(min=1e-3))
    panels = (
        ("trunk, cross entropy", plain, "viridis", (0.0, 1.0)),
        ("trunk, with contrast", contrast, "viridis", (0.0, 1.0)),
        ("difference", change, "RdBu_r", (-most, most)),
    )
    figure, axes = grid(1, len(panels), (12, 3.7))
    for axis, (title, matrix, colors, (low, high)) in zip(axes[0], panels, strict=True):
        image = axis.imshow(matrix.numpy(), cmap=colors, vmin=low, vmax=high)
        axis.set_title(title, fontsize=10)
        ticks = range(data.num_classes)
        axis.set_xticks(ticks, labels=data.class_names, rotation=90, fontsize=7)
        axis.set_yticks(ticks, labels=data.class_names, fontsize=7)
        figure.colorbar(image, ax=axis, shrink=0.7)
    save(figure, path)
