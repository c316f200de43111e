"""What an embedding is good for besides segmentation, for classes that training has not seen.

Scores use the cosines of sampled pixels. The first half of the images, in the order of their
names, holds the labelled pixels ("support"), the second half those to be found ("queries").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import LargeTrunk, SegmentationNetwork

SHOTS = (1, 5, 20)
EPISODES = 10
NEIGHBORS = 5
RIDGE = 0.1
"""Penalty of the linear probe."""
PER_GROUP = {"train": 2, "heldout": 6, "other": 6}
"""Pixels that are sampled of each class in each image."""
BATCH = 16
METHODS = ("mean", "neighbors", "probe")
SCORES = (
    *("retrieval", "clusters", "unknown"),
    *(f"{which} {method} {k}" for which in ("new", "all") for method in METHODS for k in SHOTS),
)
"""Mean average precision of new classes; mutual information of clusters of new classes; AUROC of
new against known classes; accuracy among the new classes and among all, by k labelled pixels."""


class Pixels(NamedTuple):
    """Sampled pixels, sorted by image: indices and labels, each (n,)."""

    images: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor


def sample_pixels(labels: Tensor, per_group: int) -> Pixels:
    """Draw up to `per_group` pixels of each label in each image of labels (N, H, W)."""
    groups = torch.arange(len(labels))[:, None, None] * 256 + labels
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(0))
    groups, by_group = groups.flatten()[order].sort(stable=True)
    rank = torch.arange(len(groups)) - torch.searchsorted(groups, groups)
    kept = order[by_group][rank < per_group]
    images, rows, columns = torch.unravel_index(kept, labels.shape)
    return Pixels(images, rows, columns, labels.flatten()[kept].long())


@torch.no_grad()
def features_at(network: SegmentationNetwork, split: Split, pixels: Pixels) -> dict[str, Tensor]:
    """Compute the features (n, D) of sampled pixels in every layer, by bilinear interpolation."""
    found: dict[str, list[Tensor]] = {}
    size = torch.tensor(split.labels.shape[-2:])
    # The centers of the pixels, in the coordinates of `grid_sample`.
    points = (2 * torch.stack([pixels.rows, pixels.columns], 1) + 1) / size - 1
    points = points.flip(1).to(split.images.device)
    for start in range(0, len(split), BATCH):
        maps = layer_maps(network, split.network_input(slice(start, start + BATCH)))
        for index in range(len(next(iter(maps.values())))):
            own = points[pixels.images == start + index]
            for name, values in maps.items():
                at = F.grid_sample(
                    values[index, None], own[None, None], padding_mode="border", align_corners=False
                )
                found.setdefault(name, []).append(at[0, :, 0].T.cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def layer_maps(network: SegmentationNetwork, images: Tensor) -> dict[str, Tensor]:
    """Compute the maps of all layers that are scored."""
    trunk = network.trunk
    if not isinstance(trunk, LargeTrunk):
        raise ValueError("network: expected one with stages, to score its layers")
    stages = trunk.stage_maps(images)
    features = trunk.merge(stages)
    return {
        **{f"1/{4 << index}": stage for index, stage in enumerate(stages)},
        "decoder": features,
        "logits": network.classifier(features),
        "projection": network.projection(network.contrasted(stages, features)),
    }


def transforms(train: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the ways to make unit vectors of features, with statistics of training pixels."""
    mean, covariance = train.mean(0), train.T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    # Shrinkage, so that directions without variance are not blown up.
    scale = (values.clamp_min(0) + 0.01 * values.mean()).rsqrt()
    return {
        "": lambda x: F.normalize(x, dim=1),
        ", centered": lambda x: F.normalize(x - mean, dim=1),
        ", whitened": lambda x: F.normalize((x - mean) @ (vectors * scale), dim=1),
    }


def embedding_scores(
    network: SegmentationNetwork, seen: SegmentationData, data: SegmentationData
) -> dict[str, Any]:
    """Score every layer and transform on the held-out images and on those of the other scene.

    Args:
        network: trained on `seen`, in eval mode.
        seen: the data with the labels of the new classes void.
        data: the data with all labels.

    Returns:
        For each split and variant the values of `SCORES`, NaN for what cannot be computed. The
        variants "softmax" and "logit" are the largest of each, and have the score "unknown" alone.
    """
    new = torch.tensor([name not in seen.classes for name in data.classes])
    train = sample_pixels(seen.train.labels.cpu(), PER_GROUP["train"])
    of_train = features_at(network, seen.train, train)
    prepared = {layer: transforms(features) for layer, features in of_train.items()}
    results: dict[str, Any] = {}
    for name, split in data.splits().items():
        if name == "train":
            continue
        pixels = sample_pixels(split.labels.cpu(), PER_GROUP[name])
        of_layer = features_at(network, split, pixels)
        valid = pixels.labels != IGNORE_INDEX
        pixels = Pixels(*(values[valid] for values in pixels))
        results[name] = found = {}
        for layer, ways in prepared.items():
            features = of_layer[layer][valid]
            for way, unit in ways.items():
                means = class_means(unit(of_train[layer]), train.labels, seen.num_classes)
                scores = score(unit(features), pixels, new, means)
                found[layer + way] = [round(scores[one], 4) for one in SCORES]
        logits, is_new = of_layer["logits"][valid], new[pixels.labels]
        for way, values in (("softmax", logits.softmax(1)), ("logit", logits)):
            unknown = auroc(-values.amax(1), is_new)
            found[way] = [round(unknown, 4) if one == "unknown" else math.nan for one in SCORES]
    return results


def class_means(vectors: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Compute the unit-length means (C, D) of the classes that have vectors."""
    means = [vectors[labels == index].mean(0) for index in range(num_classes)]
    found = torch.stack(means)
    return F.normalize(found[found.isfinite().all(1)], dim=1)


def score(vectors: Tensor, pixels: Pixels, new: Tensor, known_means: Tensor) -> dict[str, float]:
    """Compute the scores of unit vectors (n, D); `new` tells the new classes.

    Classes with fewer than max(`SHOTS`) pixels in one half of the images are left out, but for
    "unknown".
    """
    found = dict.fromkeys(SCORES, math.nan)
    found["unknown"] = auroc(-(vectors @ known_means.T).amax(1), new[pixels.labels])
    first = pixels.images <= pixels.images.max() // 2
    counts = torch.stack(
        [torch.bincount(pixels.labels[half], minlength=len(new)) for half in (first, ~first)]
    )
    scored = (counts >= max(SHOTS)).all(0)
    for which, classes in (("new", new & scored), ("all", scored)):
        if not classes.any():
            continue
        used = classes[pixels.labels]
        support, queries = used & first, used & ~first
        labels = pixels.labels[support], pixels.labels[queries]
        if which == "new":
            found["retrieval"] = _retrieval(vectors, pixels.labels, support, ~first)
            found["clusters"] = _clusters(vectors[queries], labels[1])
        cosines = vectors[support] @ vectors[support].T, vectors[queries] @ vectors[support].T
        for k in SHOTS:
            episodes = draw_episodes(labels[0], k)
            for method, values in few_shot(*cosines, labels[0], episodes).items():
                found[f"{which} {method} {k}"] = class_accuracy(values, labels[1])
    return found


def _retrieval(vectors: Tensor, labels: Tensor, queries: Tensor, gallery: Tensor) -> float:
    """Compute the mean over classes of the mean average precision of their queries."""
    relevant = labels[queries][:, None] == labels[gallery]
    precision = average_precision(vectors[queries] @ vectors[gallery].T, relevant)
    return _mean_of_classes(precision, labels[queries])


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Compute the average precision of each row of scores (Q, G), (Q,)."""
    hits = relevant.gather(1, scores.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Compute the area under the ROC curve, the probability that a positive scores higher."""
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[scores.argsort()] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    count = int(positive.sum())
    above = ranks[positive].sum() - count * (count + 1) / 2
    return (above / (count * (len(scores) - count))).item()


def _clusters(vectors: Tensor, labels: Tensor) -> float:
    """Compute the normalized mutual information of classes and as many clusters."""
    clusters = KMeans(len(present(labels)), n_init=3, random_state=0).fit_predict(vectors.numpy())
    return float(normalized_mutual_info_score(labels.numpy(), clusters))


def draw_episodes(labels: Tensor, k: int) -> Tensor:
    """Draw k indices of each class, without replacement: (`EPISODES`, C·k), sorted by class."""
    generator = torch.Generator().manual_seed(k)
    drawn = []
    for index in present(labels):
        own = (labels == index).nonzero()[:, 0]
        order = torch.rand(EPISODES, len(own), generator=generator).argsort(1)
        drawn.append(own[order[:, :k]])
    return torch.cat(drawn, 1)


def few_shot(within: Tensor, across: Tensor, labels: Tensor, episodes: Tensor) -> dict[str, Tensor]:
    """Classify queries by the labelled pixels of each episode, with each of `METHODS`.

    Args:
        within: cosines of the support (S, S).
        across: cosines of queries and support (Q, S).
        labels: of the support (S,).
        episodes: indices of labelled pixels (E, n), as many of each class, sorted by class.

    Returns:
        Predicted classes (E, Q) by method.
    """
    classes = present(labels)
    own = torch.searchsorted(classes, labels[episodes])
    targets = F.one_hot(own, len(classes)).to(within.dtype)  # (E, n, C)
    similar = across[:, episodes].movedim(1, 0)  # (E, Q, n)
    among = within[episodes[:, :, None], episodes[:, None]]  # (E, n, n)
    # The cosine with the mean of a class is the mean cosine over the length of the mean.
    lengths = (targets.mT @ among @ targets).diagonal(dim1=1, dim2=2).sqrt()
    nearest, at = similar.topk(min(NEIGHBORS, episodes.shape[1] // len(classes)), dim=2)
    votes = targets.gather(1, at.flatten(1)[..., None].expand(-1, -1, len(classes)))
    votes = votes.view(*at.shape, -1) * (1 + nearest)[..., None]
    # Ridge regression on the classes with a constant feature, in its dual form.
    identity = torch.eye(among.shape[1])
    coefficients = torch.linalg.solve(among + 1 + RIDGE * identity, targets)
    found = {
        "mean": (similar @ targets) / lengths[:, None],
        "neighbors": votes.sum(2),
        "probe": (similar + 1) @ coefficients,
    }
    return {method: classes[values.argmax(2)] for method, values in found.items()}


def class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Compute the accuracy of predictions (E, Q), averaged over classes."""
    correct = (predicted == labels).double().mean(0)
    return _mean_of_classes(correct, labels)


def _mean_of_classes(values: Tensor, labels: Tensor) -> float:
    """Compute the mean of the means of the classes that are present."""
    means = [values[labels == index].mean() for index in present(labels)]
    return torch.stack(means).mean().item()


def present(labels: Tensor) -> Tensor:
    """Return the classes that have labels, in ascending order."""
    return labels.bincount().nonzero()[:, 0]
