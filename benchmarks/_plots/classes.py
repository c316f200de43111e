"""The classes of a pair of networks: their pixels, their similarity, and their bank entries."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from benchmarks._plots.canvas import GREY, class_colors, grid, save
from benchmarks._plots.scene import Networks
from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import predict
from benchmarks._training.network import nearest_labels
from pixcontrast import PixelContrastLoss

PIXELS_OF_CLASS = 120
PERPLEXITY = 30.0
DENSE_STEPS, SPARSE_STEPS = 20, 10
"""The bank is recorded at every step up to the first number, then every so many."""


@torch.no_grad()
def save_scatter(path: Path, data: SegmentationData, networks: Networks, seed: int) -> None:
    """Draw the same held-out pixels under PCA and t-SNE: both trunks, the trained projection."""
    plain, contrast = networks
    columns = (
        ("trunk, cross entropy", plain, "features"),
        ("trunk, with contrast", contrast, "features"),
        ("projection, with contrast", contrast, "embedding"),
    )
    figure, axes = grid(2, 3, (10, 6.4))
    for column, (title, network, output) in enumerate(columns):
        vectors, labels = [], []
        for outputs, full_labels in predict(network, data.heldout):
            maps: Tensor = getattr(outputs, output)
            vectors.append(maps.movedim(1, -1).flatten(0, -2))
            labels.append(nearest_labels(full_labels, maps).flatten())
        selected = balanced(torch.cat(labels), data.num_classes, seed)
        kinds = torch.cat(labels)[selected]
        points = F.normalize(torch.cat(vectors)[selected], dim=1).numpy()
        # t-SNE needs a perplexity below the number of points.
        perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
        layouts = {
            "PCA": PCA(2, random_state=seed),
            "t-SNE": TSNE(2, perplexity=perplexity, random_state=seed),
        }
        for axis, (method, layout) in zip(axes[:, column], layouts.items(), strict=True):
            flat = layout.fit_transform(points)
            for index, (name, color) in enumerate(class_colors(data).items()):
                own = (kinds == index).numpy()
                axis.scatter(*flat[own].T, s=5, color=color, label=name, linewidths=0)
            axis.set(facecolor=GREY, xticks=[], yticks=[])
            axis.set_title(f"{method}: {title}", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=8, markerscale=3)
    save(figure, path)


def balanced(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """Select the same number of random pixels of every class; of a rare class, all."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    of_classes = [order[labels[order] == number][:PIXELS_OF_CLASS] for number in range(num_classes)]
    return torch.cat(of_classes)


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


class Occupancy:
    """Number of entries of each class in each queue after some steps, and number of slots."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pixels: list[list[int]] = []
        self.regions: list[list[int]] = []
        self.slots: dict[str, int] = {}

    def observe(self, step: int, criterion: PixelContrastLoss) -> None:
        """Record the bank of a loss that has just been called."""
        bank = criterion.bank
        if bank is None or (step >= DENSE_STEPS and step % SPARSE_STEPS):
            return
        self.steps.append(step + 1)
        self.pixels.append(bank.pixel_count.tolist())
        self.regions.append(bank.region_count.tolist())
        self.slots.update(pixels=bank.pixel_slots, regions=bank.region_slots)


def save_occupancy(path: Path, data: SegmentationData, occupancy: Occupancy) -> None:
    """Draw how the bank fills: a panel for each queue with a line for each class."""
    figure, axes = grid(1, 2, (9, 3.4))
    axes[0, 1].sharey(axes[0, 0])
    panels = {"pixels": occupancy.pixels, "regions": occupancy.regions}
    for axis, (queue, counts) in zip(axes[0], panels.items(), strict=True):
        for index, (name, color) in enumerate(class_colors(data).items()):
            axis.plot(occupancy.steps, [row[index] for row in counts], label=name, color=color)
        axis.set_title(f"{queue}, {occupancy.slots[queue]} slots a class", fontsize=9)
        axis.set(xscale="log", xlabel="step", facecolor=GREY)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("entries")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right center", fontsize=7)
    save(figure, path, dpi=100)
