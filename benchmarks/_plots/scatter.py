"""The picture of pixels by class, as PCA and t-SNE lay them out, without contrast and with it."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import predict
from benchmarks._training.network import Outputs, SegmentationNetwork, nearest_labels
from benchmarks._training.pairs import Networks

PIXELS_OF_CLASS = 120
PERPLEXITY = 30.0
Points = npt.NDArray[np.float32]


@torch.no_grad()
def save_scatter(path: Path, data: SegmentationData, networks: Networks, seed: int) -> None:
    """Draw the same held-out pixels three times: both trunks, and the trained projection."""
    plain = _pixels(networks.plain, data, "features")
    contrast = _pixels(networks.contrast, data, "features")
    projection = _pixels(networks.contrast, data, "embedding")
    chosen = _balanced(plain[1], data.num_classes, seed)
    columns = (
        ("trunk, cross entropy", plain),
        ("trunk, with contrast", contrast),
        ("projection, with contrast", projection),
    )
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
    for column, (title, (vectors, labels)) in enumerate(columns):
        points: Points = F.normalize(vectors[chosen], dim=1).numpy()
        classes = labels[chosen]
        laid_out = (
            ("PCA", PCA(2, random_state=seed).fit_transform(points)),
            (
                "t-SNE",
                TSNE(2, perplexity=_perplexity(points), random_state=seed).fit_transform(points),
            ),
        )
        for row, (method, flat) in enumerate(laid_out):
            axis = axes[row, column]
            for number, name in enumerate(data.class_names):
                own = (classes == number).numpy()
                colour = tuple(part / 255 for part in data.class_colours[number])
                axis.scatter(*flat[own].T, s=5, color=colour, label=name, linewidths=0)
            axis.set_facecolor("0.85")  # some classes are drawn nearly white
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{method}: {title}", fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        markerscale=3,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _pixels(
    network: SegmentationNetwork, data: SegmentationData, which: str
) -> tuple[Tensor, Tensor]:
    """(n, D) vectors of all held-out pixels and (n,) their labels."""
    vectors, labels = [], []
    for outputs, of_images in predict(network, data.heldout):
        maps = _maps(outputs, which)
        vectors.append(maps.movedim(1, -1).flatten(0, -2))
        labels.append(nearest_labels(of_images, maps).flatten())
    return torch.cat(vectors), torch.cat(labels)


def _maps(outputs: Outputs, which: str) -> Tensor:
    return outputs.features if which == "features" else outputs.embedding


def _balanced(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """The numbers of as many pixels of every class, at random; of a rare class all it has."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    of_classes = [order[labels[order] == number][:PIXELS_OF_CLASS] for number in range(num_classes)]
    return torch.cat(of_classes)


def _perplexity(points: Points) -> float:
    """The usual one; less where there are hardly any points, as t-SNE demands."""
    return min(PERPLEXITY, (len(points) - 1) / 3)
