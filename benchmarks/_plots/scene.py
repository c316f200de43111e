"""Held-out images as a network sees them, and which of their pixels become anchors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from torch import Tensor

from benchmarks._plots.canvas import grid, save, scatter_pixels
from benchmarks._training.criterion import make_criterion
from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData
from benchmarks._training.network import (
    Outputs,
    SegmentationNetwork,
    full_resolution,
    nearest_labels,
)
from benchmarks._training.recipe import Recipe

IMAGES = 4
WRONG, RIGHT = (230, 60, 60), (60, 60, 90)


class Scene(NamedTuple):
    """Some images and the outputs of a network.

    Attributes:
        pictures: the images (B, H, W, 3).
        full_labels: their labels (B, H, W).
        outputs: of the network.
        labels, predicted: classes at the resolution of the outputs.
    """

    pictures: Bytes
    full_labels: Tensor
    outputs: Outputs
    labels: Tensor
    predicted: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which pixels are mispredicted, in the shape of `labels`."""
        return (self.predicted != self.labels) & (self.labels != IGNORE_INDEX)

    def of_image(self, pixels: Tensor, image: int) -> Tensor:
        """Select the pixels of one image, and index them within it."""
        size = self.labels[0].numel()
        return pixels[pixels // size == image] % size

    def extent(self) -> tuple[int, int, int, int]:
        """Return the extent for `imshow`, so that images and maps cover the same rectangle."""
        height, width = self.labels.shape[-2:]
        return (0, width, height, 0)


@torch.no_grad()
def look(network: SegmentationNetwork, data: SegmentationData, count: int) -> Scene:
    """Run a network on `count` held-out images, spread evenly over the set."""
    count = min(count, len(data.heldout))
    selected = torch.linspace(0, len(data.heldout) - 1, count).round().long()
    labels = data.heldout.labels[selected].long()
    outputs: Outputs = network(data.heldout.network_input(selected))
    predicted = full_resolution(outputs.logits, labels).argmax(1)
    return Scene(
        data.heldout.images[selected].permute(0, 2, 3, 1).numpy(),
        labels,
        outputs,
        nearest_labels(labels, outputs.embedding),
        nearest_labels(predicted, outputs.embedding),
    )


def sample_anchors(scene: Scene, recipe: Recipe, num_classes: int, seed: int) -> Tensor:
    """Sample anchors as the recipe's loss does; returns indices into the flattened maps."""
    sampler = make_criterion(recipe, num_classes).anchor_sampler
    generator = torch.Generator().manual_seed(seed)
    labels, predicted = scene.labels.flatten(1), scene.predicted.flatten(1)
    sample = sampler(labels, predicted, ignore_index=IGNORE_INDEX, generator=generator)
    return sample.indices[sample.labels != IGNORE_INDEX]


def draw_anchors(axis: Axes, scene: Scene, anchors: Tensor, image: int) -> None:
    """Draw the anchors of one image: hard ones yellow, easy ones white."""
    hard = scene.wrong.flatten()[anchors]
    for group, color in ((anchors[~hard], "white"), (anchors[hard], "yellow")):
        pixels, width = scene.of_image(group, image), scene.labels.shape[-1]
        scatter_pixels(axis, pixels, width, s=12, color=color, edgecolors="black", linewidths=0.4)


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
        for row, background in enumerate((scene.pictures[image], wrong[image].numpy())):
            axis = axes[row, image]
            axis.imshow(background, extent=scene.extent(), interpolation="nearest")
            draw_anchors(axis, scene, anchors, image)
            axis.set_axis_off()
    hard = scene.wrong.flatten()[anchors].double().mean().item()
    figure.suptitle(
        f"{len(anchors)} anchors of {count} images, {hard:.0%} of them hard (yellow); "
        "below, mispredicted pixels in red",
        fontsize=9,
    )
    save(figure, path)
