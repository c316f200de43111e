"""Held-out images as networks see them: predictions, embedding maps, and the anchors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from benchmarks._plots.canvas import class_colors, grid, save
from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData
from benchmarks._training.network import (
    Outputs,
    SegmentationNetwork,
    full_resolution,
    nearest_labels,
)
from benchmarks._training.recipe import Recipe

IMAGES, IMAGES_OF_MAPS = 4, 5
WRONG, RIGHT, IGNORED = (230, 60, 60), (60, 60, 90), (255, 255, 255)
CELL = 1.7
"""Width of a picture in inches."""

Networks = tuple[SegmentationNetwork, SegmentationNetwork]
"""The networks of a pair, trained without and with contrast."""


class Scene(NamedTuple):
    """Some images and the outputs of a network.

    Attributes:
        pictures: the images (B, H, W, 3).
        full_labels, full_predicted: their classes (B, H, W).
        outputs: of the network.
        labels, predicted: classes at the resolution of the outputs.
    """

    pictures: Bytes
    full_labels: Tensor
    full_predicted: Tensor
    outputs: Outputs
    labels: Tensor
    predicted: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which pixels are mispredicted, in the shape of `labels`."""
        return (self.predicted != self.labels) & (self.labels != IGNORE_INDEX)

    def show(self, axis: Axes, picture: Any, **options: Any) -> Any:
        """Draw a picture or a map; all of them cover the same rectangle."""
        height, width = self.labels.shape[-2:]
        axis.set_axis_off()
        return axis.imshow(picture, extent=(0, width, height, 0), **options)

    def mark(self, axis: Axes, pixels: Tensor, image: int, **style: Any) -> None:
        """Draw points at those of some pixels, indices into the flat maps, that are of an image."""
        size, width = self.labels[0].numel(), self.labels.shape[-1]
        places = (pixels[pixels // size == image] % size).numpy()
        axis.scatter(places % width + 0.5, places // width + 0.5, **style)

    def mark_anchors(self, axis: Axes, anchors: Tensor, image: int) -> None:
        """Draw the anchors of one image: hard ones yellow, easy ones white."""
        hard = self.wrong.flatten()[anchors]
        style: dict[str, Any] = {"s": 12, "edgecolors": "black", "linewidths": 0.4}
        self.mark(axis, anchors[~hard], image, color="white", **style)
        self.mark(axis, anchors[hard], image, color="yellow", **style)


@torch.no_grad()
def look(network: SegmentationNetwork, data: SegmentationData, count: int) -> Scene:
    """Run a network on `count` held-out images, spread evenly over the set."""
    count = min(count, len(data.heldout))
    selected = torch.linspace(0, len(data.heldout) - 1, count).round().long()
    labels = data.heldout.labels[selected].long()
    outputs: Outputs = network(data.heldout.network_input(selected))
    predicted = full_resolution(outputs.logits, labels).argmax(1)
    pictures = data.heldout.images[selected].permute(0, 2, 3, 1).numpy()
    coarse = (nearest_labels(classes, outputs.embedding) for classes in (labels, predicted))
    return Scene(pictures, labels, predicted, outputs, *coarse)


def sample_anchors(scene: Scene, recipe: Recipe, num_classes: int, seed: int) -> Tensor:
    """Sample anchors as the recipe's loss does; returns indices into the flattened maps."""
    sampler = recipe.make_criterion(num_classes).anchor_sampler
    generator = torch.Generator().manual_seed(seed)
    labels, predicted = scene.labels.flatten(1), scene.predicted.flatten(1)
    sample = sampler(labels, predicted, ignore_index=IGNORE_INDEX, generator=generator)
    return sample.indices[sample.labels != IGNORE_INDEX]


def save_anchors(
    path: Path, data: SegmentationData, network: SegmentationNetwork, recipe: Recipe, seed: int
) -> None:
    """Draw the anchors of a batch over its images, and over a map of the wrong predictions."""
    scene = look(network, data, IMAGES)
    anchors = sample_anchors(scene, recipe, data.num_classes, seed)
    count, (height, width) = len(scene.labels), scene.labels.shape[-2:]
    figure, axes = grid(2, count, (2.9 * count, 5.8 * height / width + 0.9))
    wrong = torch.where(scene.wrong[..., None], torch.tensor(WRONG), torch.tensor(RIGHT))
    for image in range(count):
        for row, background in enumerate((scene.pictures, wrong.numpy())):
            scene.show(axes[row, image], background[image], interpolation="nearest")
            scene.mark_anchors(axes[row, image], anchors, image)
    hard = scene.wrong.flatten()[anchors].double().mean().item()
    figure.suptitle(
        f"{len(anchors)} anchors of {count} images, {hard:.0%} of them hard (yellow); "
        "below, mispredicted pixels in red",
        fontsize=9,
    )
    save(figure, path)


def save_maps(path: Path, data: SegmentationData, networks: Networks, title: str) -> None:
    """Draw some held-out images as both networks see them.

    The PCA of each map is fitted to that map alone: equal colors mean similar pixels within a
    column, and nothing across columns.
    """
    plain, contrast = (look(network, data, IMAGES_OF_MAPS) for network in networks)
    labels = plain.full_labels
    # All classes count equally in a PCA; a large class would take all colors.
    counts = torch.bincount(plain.labels.flatten(), minlength=IGNORE_INDEX + 1)
    weights = (1.0 / counts[plain.labels]).masked_fill(plain.labels == IGNORE_INDEX, 0.0)
    palette = np.full((256, 3), IGNORED, np.uint8)
    palette[: data.num_classes] = list(data.classes.values())
    columns: dict[str, npt.NDArray[Any]] = {
        "image": plain.pictures,
        "label": palette[labels.numpy()],
        "prediction\ncross entropy": palette[plain.full_predicted.numpy()],
        "prediction\nwith contrast": palette[contrast.full_predicted.numpy()],
        "trunk (PCA)\ncross entropy": principal_colors(plain.outputs.features, weights),
        "trunk (PCA)\nwith contrast": principal_colors(contrast.outputs.features, weights),
        "projection (PCA)\nwith contrast": principal_colors(contrast.outputs.embedding, weights),
    }
    rows, height, width = labels.shape
    size = (CELL * len(columns), CELL * rows * height / width + 1.6)
    figure, axes = grid(rows, len(columns), size)
    for column, (heading, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(heading, fontsize=9)
        for axis, picture in zip(axes[:, column], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    legend = class_colors(data)
    if bool((data.heldout.labels == IGNORE_INDEX).any()):
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
