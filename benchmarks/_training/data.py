"""Segmentation data in memory: a training and a held-out split, and the classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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

    def fingerprint(self) -> str:
        """Return a short hash of images and labels, to compare the data of two results."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SegmentationData:
    """Images of one data set, and the names of its classes in label order.

    `other` are held-out images of a scene without training images, if any.
    """

    train: Split
    heldout: Split
    classes: tuple[str, ...]
    other: Split | None = None

    def splits(self) -> dict[str, Split]:
        """Return the splits by name."""
        found = {"train": self.train, "heldout": self.heldout, "other": self.other}
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


def stacked(images: list[Bytes], labels: list[Bytes]) -> Split:
    """Make a split of (H, W, 3) images and (H, W) labels."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.from_numpy(np.stack(labels)))
