"""Pictures of held-out images as a pair of networks sees them: predictions and embedding maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, SegmentationData
from benchmarks._training.network import (
    Outputs,
    SegmentationNetwork,
    full_resolution,
    nearest_labels,
)

IMAGES = 5
IGNORED = (255, 255, 255)
CELL = 1.7
"""Width of a picture in inches."""


@torch.no_grad()
def save_maps(
    path: Path,
    data: SegmentationData,
    plain: SegmentationNetwork,
    contrast: SegmentationNetwork,
    title: str,
) -> None:
    """Draw some held-out images as both networks see them.

    The PCA of each map is fitted to that map alone: equal colors mean similar pixels within a
    column, and nothing across columns.
    """
    count = min(IMAGES, len(data.heldout))
    selected = torch.linspace(0, len(data.heldout) - 1, count).round().long()
    labels = data.heldout.labels[selected].long()
    images = data.heldout.network_input(selected)
    without, with_it = plain(images), contrast(images)
    # All classes count equally in a PCA; a large class would take all colors.
    coarse = nearest_labels(labels, without.features)
    counts = torch.bincount(coarse.flatten(), minlength=IGNORE_INDEX + 1)
    weights = (1.0 / counts[coarse]).masked_fill(coarse == IGNORE_INDEX, 0.0)
    palette = np.full((256, 3), IGNORED, np.uint8)
    palette[: data.num_classes] = list(data.classes.values())

    def predictions(one: Outputs) -> npt.NDArray[Any]:
        colors: npt.NDArray[Any] = palette[full_resolution(one.logits, labels).argmax(1).numpy()]
        return colors

    columns: dict[str, npt.NDArray[Any]] = {
        "image": data.heldout.images[selected].permute(0, 2, 3, 1).numpy(),
        "label": palette[labels.numpy()],
        "prediction\ncross entropy": predictions(without),
        "prediction\nwith contrast": predictions(with_it),
        "trunk (PCA)\ncross entropy": principal_colors(without.features, weights),
        "trunk (PCA)\nwith contrast": principal_colors(with_it.features, weights),
        "projection (PCA)\nwith contrast": principal_colors(with_it.embedding, weights),
    }
    rows, height, width = labels.shape
    size = (CELL * len(columns), CELL * rows * height / width + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (heading, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(heading, fontsize=9)
        for axis, picture in zip(axes[:, column], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    legend = dict(data.classes)
    if bool((data.heldout.labels == IGNORE_INDEX).any()):
        legend["void (ignored)"] = IGNORED
    patches = [
        Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="grey", label=name)
        for name, (red, green, blue) in legend.items()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=150)


def principal_colors(maps: Tensor, weights: Tensor) -> npt.NDArray[np.float64]:
    """Show maps (N, D, H, W) as (N, H, W, 3) colors: their three main directions as RGB.

    Vectors are normalized, as the contrast compares them, and pixels weighted by `weights`
    (N, H, W). The outermost 1% of pixels may saturate, so that outliers do not grey out the rest.
    """
    pixels = F.normalize(maps, dim=1).movedim(1, -1).flatten(0, 2).double()
    weight = weights.flatten()[:, None].double()
    pixels = pixels - (weight * pixels).sum(0) / weight.sum()
    _, directions = torch.linalg.eigh(pixels.T @ (weight * pixels))
    scores = pixels @ directions[:, -3:].flip(1)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]).double(), dim=0)
    spread = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    colors: npt.NDArray[np.float64] = ((scores - low) / spread).clamp(0, 1).numpy()
    return colors.reshape(*weights.shape, 3)
