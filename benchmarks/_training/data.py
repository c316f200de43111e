"""What the segmentation benchmark asks of a data set: two splits and a legend."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE_INDEX = 255
"""The label of pixels that belong to no class, in every data set here."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) and labels (N, H, W), both uint8: small enough to stay in memory."""

    images: Tensor
    labels: Tensor

    @classmethod
    def from_arrays(cls, images: list[Bytes], labels: list[Bytes]) -> "Split":
        """Stack (H, W, 3) images and (H, W) labels as Pillow and matplotlib hold them."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return cls(stacked, torch.from_numpy(np.stack(labels)))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Split":
        """The same images and labels on a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def network_input(self, indices: Tensor | slice) -> Tensor:
        """The chosen images as the network takes them: floating and roughly centred."""
        chosen = self.images[indices].float().div_(64.0).sub_(2.0)
        # Convolutions on a CPU run a third faster on channels that lie next to each other.
        return chosen.contiguous(memory_format=torch.channels_last)

    def fingerprint(self) -> str:
        """A short hash of images and labels, to tell whether two results saw the same data."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SegmentationData:
    """Training and held-out images of one data set, with the names and colours of its classes."""

    name: str
    train: Split
    heldout: Split
    heldout_is: str
    class_names: tuple[str, ...]
    class_colours: tuple[tuple[int, int, int], ...]

    def to(self, device: torch.device) -> "SegmentationData":
        """The same data on a device."""
        return replace(self, train=self.train.to(device), heldout=self.heldout.to(device))

    @property
    def num_classes(self) -> int:
        """How many classes there are, the void one not counted."""
        return len(self.class_names)

    @property
    def has_void(self) -> bool:
        """Whether some held-out pixels belong to no class."""
        return bool((self.heldout.labels == IGNORE_INDEX).any())
