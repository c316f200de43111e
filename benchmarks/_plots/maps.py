"""The figure: what both arms predict, and how their embedding maps look."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.patches import Patch
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData
from benchmarks._training.network import Outputs, full_resolution, nearest_labels
from benchmarks._training.pairs import Networks

ROWS = 5
VOID_COLOUR = (255, 255, 255)
COLUMNS = (
    "image",
    "label",
    "prediction\ncross entropy",
    "prediction\nwith contrast",
    "trunk (PCA)\ncross entropy",
    "trunk (PCA)\nwith contrast",
    "projection (PCA)\nwith contrast",
)


@torch.no_grad()
def save_figure(path: Path, data: SegmentationData, networks: Networks, title: str) -> None:
    """Draw some held-out images, spread evenly over the set, as both networks see them.

    The PCA of each map is fitted to that map alone: equal colours say that two pixels of one
    column are alike, and nothing across columns.
    """
    rows = min(ROWS, len(data.heldout))
    chosen = torch.linspace(0, len(data.heldout) - 1, rows).round().long()
    images = data.heldout.network_input(chosen)
    labels = data.heldout.labels[chosen].long()
    plain: Outputs = networks.plain(images)
    contrast: Outputs = networks.contrast(images)
    weights = _class_balance(nearest_labels(labels, plain.features))
    columns: tuple[Bytes | npt.NDArray[np.float64], ...] = (
        data.heldout.images[chosen].permute(0, 2, 3, 1).numpy(),
        _in_class_colours(labels, data),
        _in_class_colours(full_resolution(plain.logits, labels).argmax(1), data),
        _in_class_colours(full_resolution(contrast.logits, labels).argmax(1), data),
        principal_colours(plain.features, weights),
        principal_colours(contrast.features, weights),
        principal_colours(contrast.embedding, weights),
    )
    height, width = labels.shape[-2:]
    cell = 1.7
    figure, axes = plt.subplots(
        rows,
        len(columns),
        figsize=(cell * len(columns), cell * rows * height / width + 1.6),
        squeeze=False,
        layout="constrained",
    )
    for column, (heading, pictures) in enumerate(zip(COLUMNS, columns, strict=True)):
        axes[0, column].set_title(heading, fontsize=9)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.legend(handles=_legend(data), loc="outside lower center", ncols=6, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def principal_colours(maps: Tensor, weights: Tensor) -> npt.NDArray[np.float64]:
    """Show maps (N, D, H, W) as (N, H, W, 3) colours: their three main directions as RGB.

    Directions of unit-length vectors, as the contrast compares them, with `weights` (N, H, W) for
    the pixels. The outermost 1% of pixels may saturate, so that outliers do not grey out the rest.
    """
    pixels = F.normalize(maps, dim=1).movedim(1, -1).flatten(0, 2).double()
    share = weights.flatten()[:, None].double()
    pixels = pixels - (share * pixels).sum(0) / share.sum()
    _, directions = torch.linalg.eigh(pixels.T @ (share * pixels))
    scores = pixels @ directions[:, -3:].flip(1)
    low, high = torch.quantile(scores, torch.tensor([0.01, 0.99]).double(), dim=0)
    spread = (high - low).clamp(min=torch.finfo(torch.float64).tiny)
    colours: npt.NDArray[np.float64] = ((scores - low) / spread).clamp(0, 1).numpy()
    return colours.reshape(*weights.shape, 3)


def _class_balance(labels: Tensor) -> Tensor:
    """Weights under which every class counts the same: a large one would take all colours."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORE_INDEX + 1)
    weights = 1.0 / counts[labels]
    weights[labels == IGNORE_INDEX] = 0.0
    return weights


def _in_class_colours(classes: Tensor, data: SegmentationData) -> Bytes:
    palette = np.full((256, 3), VOID_COLOUR, np.uint8)
    palette[: data.num_classes] = data.class_colours
    coloured: Bytes = palette[classes.numpy()]
    return coloured


def _legend(data: SegmentationData) -> list[Patch]:
    entries = list(zip(data.class_names, data.class_colours, strict=True))
    if data.has_void:
        entries.append(("void (ignored)", VOID_COLOUR))
    return [
        Patch(
            facecolor=(colour[0] / 255, colour[1] / 255, colour[2] / 255),
            edgecolor="grey",
            label=name,
        )
        for name, colour in entries
    ]
