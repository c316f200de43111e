"""Held-out pixels by class under PCA and t-SNE, without contrast and with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from benchmarks._plots.canvas import GREY, class_colors, grid, save
from benchmarks._plots.maps import Networks
from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import predict
from benchmarks._training.network import SegmentationNetwork, nearest_labels

PIXELS_OF_CLASS = 120
PERPLEXITY = 30.0
Points = npt.NDArray[np.float32]


@torch.no_grad()
def save_scatter(path: Path, data: SegmentationData, networks: Networks, seed: int) -> None:
    """Draw the same pixels three times: both trunks, and the trained projection."""
    plain, contrast = networks
    columns = {
        "trunk, cross entropy": _vectors(plain, data, "features"),
        "trunk, with contrast": _vectors(contrast, data, "features"),
        "projection, with contrast": _vectors(contrast, data, "embedding"),
    }
    selected = balanced(columns["trunk, cross entropy"][1], data.num_classes, seed)
    figure, axes = grid(2, 3, (10, 6.4))
    for column, (title, (vectors, labels)) in enumerate(columns.items()):
        points: Points = F.normalize(vectors[selected], dim=1).numpy()
        # t-SNE needs a perplexity below the number of points.
        perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
        layouts = {
            "PCA": PCA(2, random_state=seed),
            "t-SNE": TSNE(2, perplexity=perplexity, random_state=seed),
        }
        for row, (method, layout) in enumerate(layouts.items()):
            axis, flat = axes[row, column], layout.fit_transform(points)
            for index, (name, color) in enumerate(class_colors(data).items()):
                own = (labels[selected] == index).numpy()
                axis.scatter(*flat[own].T, s=5, color=color, label=name, linewidths=0)
            axis.set_facecolor(GREY)
            axis.set_xticks([])
            axis.set_yticks([])
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


def _vectors(
    network: SegmentationNetwork, data: SegmentationData, output: str
) -> tuple[Tensor, Tensor]:
    """Return the vectors (n, D) of all held-out pixels in one of the outputs, and labels (n,)."""
    vectors, labels = [], []
    for outputs, full_labels in predict(network, data.heldout):
        maps: Tensor = getattr(outputs, output)
        vectors.append(maps.movedim(1, -1).flatten(0, -2))
        labels.append(nearest_labels(full_labels, maps).flatten())
    return torch.cat(vectors), torch.cat(labels)
