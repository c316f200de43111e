"""The predictions of both networks of a pair, and their embedding maps as colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.patches import Patch
from torch import Tensor

from benchmarks._plots.canvas import class_colors, grid, save
from benchmarks._plots.scene import look
from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData
from benchmarks._training.network import SegmentationNetwork, full_resolution

IMAGES = 5
IGNORED_COLOR = (255, 255, 255)
CELL = 1.7
"""Width of a picture in inches."""

Networks = tuple[SegmentationNetwork, SegmentationNetwork]
"""The networks of a pair, trained without and with contrast."""


def save_maps(path: Path, data: SegmentationData, networks: Networks, title: str) -> None:
    """Draw some held-out images as both networks see them.

    The PCA of each map is fitted to that map alone: equal colors mean similar pixels within a
    column, and nothing across columns.
    """
    plain, contrast = (look(network, data, IMAGES) for network in networks)
    labels = plain.full_labels
    weights = _class_balance(plain.labels)
    predictions = [
        full_resolution(scene.outputs.logits, labels).argmax(1) for scene in (plain, contrast)
    ]
    columns: dict[str, Bytes | npt.NDArray[np.float64]] = {
        "image": plain.pictures,
        "label": _colored(labels, data),
        "prediction\ncross entropy": _colored(predictions[0], data),
        "prediction\nwith contrast": _colored(predictions[1], data),
        "trunk (PCA)\ncross entropy": principal_colors(plain.outputs.features, weights),
        "trunk (PCA)\nwith contrast": principal_colors(contrast.outputs.features, weights),
        "projection (PCA)\nwith contrast": principal_colors(contrast.outputs.embedding, weights),
    }
    rows, height, width = labels.shape
    size = (CELL * len(columns), CELL * rows * height / width + 1.6)
    figure, axes = grid(rows, len(columns), size)
    for column, (heading, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(heading, fontsize=9)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
    figure.suptitle(title, fontsize=11)
    legend = class_colors(data)
    if data.has_ignored_pixels:
        legend["void (ignored)"] = (1.0, 1.0, 1.0)
    patches = [Patch(facecolor=c, edgecolor="grey", label=name) for name, c in legend.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8)
    save(figure, path, dpi=150)


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


def _class_balance(labels: Tensor) -> Tensor:
    """Weight pixels so that all classes count equally; a large class would take all colors."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1)
    weights = 1.0 / counts[labels]
    weights[labels == IGNORE_INDEX] = 0.0
    return weights


def _colored(labels: Tensor, data: SegmentationData) -> Bytes:
    palette = np.full((256, 3), IGNORED_COLOR, np.uint8)
    palette[: data.num_classes] = list(data.classes.values())
    colored: Bytes = palette[labels.numpy()]
    return colored
