"""What a batch brings to a bank: regions and pixels of each class, of this rank or of all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, pad
from pixcontrast._groups import DRAW_BITS, sort_pixels
from pixcontrast._labels import IGNORED
from pixcontrast._pixels import take_pixels, unit_length
from pixcontrast._regions import Regions, region_means, usable_pixels


class NewEntries(NamedTuple):
    """What there is for each queue, or None where there is no such queue, or nothing at all.

    Each is (B, C, E, D) unit vectors, and (B, C) int64 how many of each E there are; no image has
    more than its number of pixels.
    """

    regions: tuple[Tensor, Tensor] | None
    pixels: tuple[Tensor, Tensor] | None


def new_entries(
    images: Tensor,
    labels: Tensor,
    regions: Regions | None,
    *,
    num_classes: int,
    pixels_per_image: int,
    with_regions: bool,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> NewEntries:
    """What a batch has for the queues that there are.

    Args:
        images: (B, D, *S).
        labels: (B, P) int64 below num_classes, or `IGNORED`.
        regions: of these images and labels, with num_classes slots, where known already.
        num_classes: C.
        pixels_per_image: the most pixels of a class that an image gives; 0: no queue of pixels.
        with_regions: whether there is a queue of regions.
        dtype: of the vectors that come back.
        generator: the source of randomness.
    """
    if labels.numel() == 0:
        nothing = labels.new_empty(0, num_classes)
        vectors = images.new_empty(0, num_classes, 1, images.shape[1], dtype=dtype)
        there = with_regions, pixels_per_image > 0
        return NewEntries(*((vectors, nothing) if queue else None for queue in there))
    found_regions = found_pixels = None
    if with_regions:
        if regions is None:
            regions = region_means(images, labels, num_classes)
        found_regions = (regions.means[:, :, None].to(dtype), regions.present.to(torch.int64))
    if pixels_per_image:
        usable = usable_pixels(images) if regions is None else regions.usable
        labels = labels.masked_fill(~usable, IGNORED)
        most = min(pixels_per_image, labels.shape[1])
        vectors, available = _sample_pixels(images, labels, num_classes, most, generator)
        found_pixels = (vectors.to(dtype), available)
    return NewEntries(found_regions, found_pixels)


def of_all_ranks(new: NewEntries, ranks: Ranks, options: str) -> NewEntries:
    """What the batches of all ranks have, in rank order, by one message.

    Batches are made as long as the longest by images that have nothing, and images as rich as
    those of the largest maps. `options` are those of the bank, which have to be the same on every
    rank.
    """
    tensors = [tensor for queue in new if queue is not None for tensor in queue]
    of_image = 1 if new.pixels is None else new.pixels[0].shape[2]
    sizes = agree(ranks, f"MemoryBank.update, {options}", [len(tensors[0]), of_image])
    most_images, most_of_image = (max(column) for column in zip(*sizes, strict=True))
    if most_images == 0:
        return NewEntries(None, None)
    if new.pixels is not None:
        tensors[-2] = pad(tensors[-2], most_of_image, dim=2)
    gathered = gather(ranks, [pad(tensor, most_images) for tensor in tensors])
    of_all = iter([tensor.flatten(0, 1) for tensor in gathered])
    return NewEntries(*(None if queue is None else (next(of_all), next(of_all)) for queue in new))


def _sample_pixels(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    pixels_per_image: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """(B, C, pixels_per_image, D) unit vectors and (B, C) how many of them there are."""
    num_images, dim = labels.shape[0], images.shape[1]
    num_groups = num_images * num_classes
    first_group = torch.arange(0, num_groups, num_classes, device=labels.device)
    groups = (first_group[:, None] + labels).masked_fill(labels == IGNORED, num_groups)
    draw = torch.randint(
        1 << DRAW_BITS, (labels.numel(),), generator=generator, device=labels.device
    )
    pixels = sort_pixels(groups.flatten(), num_groups, draw)

    start = pixels.start_of(torch.arange(num_groups + 1, device=labels.device))
    available = start.diff().clamp(max=pixels_per_image)
    number = torch.arange(pixels_per_image, device=labels.device)
    places = start[:-1, None] + number
    # What a group lacks is one and the same pixel, soon read; nobody looks at it.
    places = places.masked_fill(number >= available[:, None], 0)
    indices = pixels.order[places.flatten()]
    vectors = take_pixels(images, indices)
    vectors = unit_length(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))
    return (
        vectors.view(num_images, num_classes, pixels_per_image, dim),
        available.view(num_images, num_classes),
    )
