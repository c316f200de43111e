"""Segmentation data in memory: a training and a held-out split, and the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = 255
"""The label of pixels without a class, in every data set of the benchmarks."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) and labels (N, H, W), both uint8."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def network_input(self, indices: Tensor | slice) -> Tensor:
        """Return the selected images as float32, roughly centered."""
        selected = self.images[indices].float().div_(64.0).sub_(2.0)
        # Convolutions on a CPU run a third faster in the channels-last format.
        return selected.contiguous(memory_format=torch.channels_last)

    def balancing_weights(self, num_classes: int) -> Tensor:
        """Return a weight of each class: the median of the frequencies over its own."""
        counts = torch.bincount(self.labels.flatten(), minlength=256)[:num_classes].float()
        return counts[counts > 0].median() / counts.clamp_min(1)

    def fingerprint(self) -> str:
        """Return a short hash of images and labels, to compare the data of two results."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SegmentationData:
    """Images of one data set, and the names of its classes in label order.

    `other` are held-out images of a scene without training images, and `unlabelled` are images for
    self-training, if any.
    """

    train: Split
    heldout: Split
    classes: tuple[str, ...]
    other: Split | None = None
    unlabelled: Split | None = None

    def splits(self) -> dict[str, Split]:
        """Return the splits by name."""
        names = ("train", "heldout", "other", "unlabelled")
        found = {name: getattr(self, name) for name in names}
        return {name: split for name, split in found.items() if split is not None}

    def to(self, device: torch.device) -> SegmentationData:
        """Return the data on a device."""
        moved: dict[str, Any] = {name: one.to(device) for name, one in self.splits().items()}
        return replace(self, **moved)

    def without_classes(self, left_out: tuple[str, ...]) -> SegmentationData:
        """Return the data with some classes void and the others renumbered."""
        known = [index for index, name in enumerate(self.classes) if name not in left_out]
        renumbered = torch.full((256,), IGNORE_INDEX, dtype=torch.uint8)
        renumbered[known] = torch.arange(len(known), dtype=torch.uint8)
        changed: dict[str, Any] = {
            name: Split(split.images, renumbered.to(split.labels.device)[split.labels.long()])
            for name, split in self.splits().items()
        }
        return replace(self, classes=tuple(self.classes[index] for index in known), **changed)

    @property
    def num_classes(self) -> int:
        """Number of classes, without the ignored one."""
        return len(self.classes)

    def with_few_labels(self, count: int, seed: int) -> SegmentationData:
        """Return the data with that many training images, drawn at random, and the others."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator).to(self.train.images.device)
        drawn, others = order[:count], order[count:]
        images, labels = self.train.images, self.train.labels
        unlabelled = Split(images[others], torch.full_like(labels[others], IGNORE_INDEX))
        return replace(self, train=Split(images[drawn], labels[drawn]), unlabelled=unlabelled)

    def with_wrong_labels(self, fraction: float, seed: int) -> SegmentationData:
        """Return the data with a fraction of the classes of each training image mislabelled."""
        generator = torch.Generator().manual_seed(seed)
        shape = len(self.train), self.num_classes
        shifts = torch.randint(1, self.num_classes, shape, generator=generator)
        shifts *= torch.rand(shape, generator=generator) < fraction
        given = (torch.arange(self.num_classes) + shifts) % self.num_classes
        lookup = torch.full((len(self.train), 256), IGNORE_INDEX, dtype=torch.uint8)
        lookup[:, : self.num_classes] = given.to(torch.uint8)
        labels = self.train.labels
        changed = lookup.to(labels.device).gather(1, labels.long().flatten(1)).view_as(labels)
        return replace(self, train=Split(self.train.images, changed))

    def with_dilated_labels(self, radius: int, seed: int) -> SegmentationData:
        """Return the data with training masks that grow over their neighbors by some pixels.

        Where two grow over each other, one wins that is drawn for each image. Void stays void.
        """
        labels, known = self.train.labels, self.train.labels < self.num_classes
        generator = torch.Generator().manual_seed(seed)
        # Row i holds the classes of image i, the last of which wins against all others.
        classes = torch.rand(len(labels), self.num_classes, generator=generator).argsort(1)
        classes = classes.to(labels.device)
        ranks = classes.argsort(1).gather(1, torch.where(known, labels, 0).long().flatten(1))
        ranks = torch.where(known, ranks.view_as(labels), -1).float()
        best = F.max_pool2d(ranks, 2 * radius + 1, 1, radius).long().clamp_min(0)
        winners = classes.gather(1, best.flatten(1)).view_as(labels).to(labels.dtype)
        changed = torch.where(known, winners, labels)
        return replace(self, train=Split(self.train.images, changed))


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "dark": lambda images: images * 0.3,
    "noise": lambda images: (
        images
        + 40
        * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    ),
    "blur": lambda images: F.avg_pool2d(images, 5, 1, 2, count_include_pad=False),
}
"""Changes of held-out images, on values from 0 to 255."""


def corrupted(split: Split, name: str) -> Split:
    """Return a split with corrupted images."""
    images = CORRUPTIONS[name](split.images.float()).round().clamp(0, 255).to(torch.uint8)
    return Split(images, split.labels)


def stacked(images: list[Bytes], labels: list[Bytes]) -> Split:
    """Make a split of (H, W, 3) images and (H, W) labels."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(np.stack(labels)))
