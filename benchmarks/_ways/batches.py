"""Batches as a segmentation network makes them: blobs of classes, mostly predicted right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._ways.authors_step import IGNORE_INDEX
from pixcontrast import MemoryBank

SHARE_WRONG = 0.15
SHARE_IGNORED = 0.04
NOISE = 1.0
"""Length of what is added to the unit vector of a pixel's class: cosines within a class near ½."""


@dataclass(frozen=True)
class BatchShape:
    """What a training step is given, and the sizes of its sampler and bank.

    Embeddings and logits have the same size, as with the authors: both come out of the network at
    a quarter of the image, and predictions are made there. Labels have the size of the image.
    """

    images: int
    dim: int
    height: int
    width: int
    stride: int
    num_classes: int
    classes_of_image: tuple[int, int]
    slots: int
    max_anchors: int = 1024
    max_views: int = 100


SHAPES = {
    "cityscapes": BatchShape(8, 256, 128, 256, 4, 19, (5, 12), 5000),
    # The authors' crops of 520 and their batch of 16, of which each of their 4 devices has 4
    # images. They give no memory for these classes: 5,000 + 5,000 slots would make one M×N matrix
    # of theirs 6.8 GB, and they hold nine. These 171,000 entries are nearly Cityscapes' 190,000.
    "coco-stuff": BatchShape(4, 256, 130, 130, 4, 171, (8, 20), 500),
    "small": BatchShape(2, 16, 16, 24, 4, 5, (3, 4), 20, max_anchors=64, max_views=8),
}
STEP_SHAPES = ("cityscapes", "coco-stuff")
"""The shapes that a step is measured on."""


@dataclass(frozen=True)
class Batch:
    """Unit embeddings (B, D, h, w) that want a gradient, labels (B, H, W), logits (B, C, h, w)."""

    emb: Tensor
    labels: Tensor
    logits: Tensor

    @classmethod
    def draw(cls, shape: BatchShape, device: torch.device) -> Batch:
        """The same batch for the same shape."""
        generator = torch.Generator().manual_seed(0)
        labels, predicted = draw_patches(shape, generator)
        directions = _directions(shape)
        emb = torch.empty(shape.images, shape.dim, shape.height, shape.width)
        for image, of_image in enumerate(labels[:, :: shape.stride, :: shape.stride]):
            pixels = directions[of_image.clamp(min=0)] * (of_image != IGNORE_INDEX)[..., None]
            emb[image] = _unit_near(pixels, generator).movedim(-1, 0)
        one_hot = F.one_hot(predicted, shape.num_classes).movedim(-1, 1)
        logits = torch.rand(one_hot.shape, generator=generator) + one_hot
        return cls(emb.to(device).requires_grad_(), labels.to(device), logits.to(device))


def draw_bank(shape: BatchShape) -> tuple[Tensor, Tensor]:
    """Full queues of pixels and regions, (C, slots, D) each, around the batch's directions."""
    generator = torch.Generator().manual_seed(1)
    around = _directions(shape)[:, None].expand(-1, shape.slots, -1)
    return _unit_near(around, generator), _unit_near(around, generator)


def fill_bank(bank: MemoryBank, shape: BatchShape) -> MemoryBank:
    """Write every slot of a bank, as after the first epochs."""
    for queue, drawn in zip((bank.pixels, bank.regions), draw_bank(shape), strict=True):
        queue.copy_(drawn)
    for count in (bank.pixel_count, bank.region_count):
        count.fill_(shape.slots)
    return bank


def draw_patches(shape: BatchShape, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) and, at the size of the embedding, what is predicted (B, h, w).

    Each image has some of the classes, in patches of unequal size. Predictions are wrong in
    patches too, and then name another class of the same image.
    """
    image_size = (shape.stride * shape.height, shape.stride * shape.width)
    labels = torch.empty(shape.images, *image_size, dtype=torch.int64)
    predicted = torch.empty(shape.images, shape.height, shape.width, dtype=torch.int64)
    fewest, most = shape.classes_of_image
    for image in range(shape.images):
        count = int(torch.randint(fewest, most + 1, (), generator=generator))
        classes = torch.randperm(shape.num_classes, generator=generator)[:count]
        # Each class has a patch, and the first ones most of the others: roads beside poles.
        others = (count * torch.rand(3 * count, generator=generator) ** 2).long()
        class_of_patch = torch.cat((torch.arange(count), others))
        patches = _patches(image_size, len(class_of_patch), generator)
        position = class_of_patch[patches]
        is_ignored = torch.rand(len(class_of_patch), generator=generator) < SHARE_IGNORED
        labels[image] = classes[position].masked_fill(is_ignored[patches], IGNORE_INDEX)

        flaws = _patches((shape.height, shape.width), 50 * count, generator)
        shift = torch.randint(1, count, (50 * count,), generator=generator)
        shift *= torch.rand(50 * count, generator=generator) < SHARE_WRONG
        seen = position[:: shape.stride, :: shape.stride]
        predicted[image] = classes[(seen + shift[flaws]) % count]
    return labels, predicted


def _patches(size: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    """(H, W) the number of the nearest of `count` random places."""
    places = torch.rand(count, 2, generator=generator) * torch.tensor(size)
    rows = (torch.arange(size[0])[:, None] - places[:, 0]).square()
    columns = (torch.arange(size[1])[:, None] - places[:, 1]).square()
    return torch.stack([(row + columns).argmin(dim=1) for row in rows])


def _directions(shape: BatchShape) -> Tensor:
    """(C, D) the unit vector of each class."""
    generator = torch.Generator().manual_seed(2)
    return F.normalize(torch.randn(shape.num_classes, shape.dim, generator=generator), dim=1)


def _unit_near(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors around those given, along the last dimension."""
    noise = torch.randn(vectors.shape, generator=generator) * (NOISE / vectors.shape[-1] ** 0.5)
    return F.normalize(vectors + noise, dim=-1)
