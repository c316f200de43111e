"""The entries that a batch adds to a bank: regions and pixels of each class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, pad
from pixcontrast._pixels.groups import DRAW_BITS, sort_pixels
from pixcontrast._pixels.maps import take_pixels
from pixcontrast._pixels.regions import Regions, region_means, usable_pixels
from pixcontrast._tensors import IGNORED, at_least_float32, unit_length


class NewEntries(NamedTuple):
    """New entries of each queue, or None if the bank does not have the queue or adds nothing.

    Each is a pair: unit vectors, shape (B, C, E, D), and the number of valid entries among each E,
    int64 of shape (B, C). No image has more entries of a class than pixels.
    """

    pixels: tuple[Tensor, Tensor] | None
    regions: tuple[Tensor, Tensor] | None


def new_entries(
    emb_map: Tensor,
    labels: Tensor,
    regions: Regions | None,
    *,
    num_classes: int,
    pixels_per_image: int,
    with_regions: bool,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> NewEntries:
    """Compute the entries that a batch adds, in the bank's dtype.

    Labels (B, P) are below `num_classes`, or `IGNORED`. `regions` are those of this batch with
    `num_classes` slots, if the caller has computed them. `pixels_per_image` is 0 without a pixel
    queue.
    """
    if labels.numel() == 0:
        empty = emb_map.new_empty(0, num_classes, 1, emb_map.shape[1], dtype=dtype)
        nothing = (empty, labels.new_empty(0, num_classes))
        return NewEntries(nothing if pixels_per_image else None, nothing if with_regions else None)
    new_pixels = new_regions = None
    if with_regions:
        if regions is None:
            regions = region_means(emb_map, labels, num_classes)
        new_regions = (regions.means[:, :, None].to(dtype), regions.present.to(torch.int64))
    if pixels_per_image:
        usable = usable_pixels(emb_map) if regions is None else regions.usable
        labels = labels.masked_fill(~usable, IGNORED)
        max_pixels = min(pixels_per_image, labels.shape[1])
        vectors, available = _sample_pixels(emb_map, labels, num_classes, max_pixels, generator)
        new_pixels = (vectors.to(dtype), available)
    return NewEntries(new_pixels, new_regions)


def gather_entries(new: NewEntries, ranks: Ranks, options: str) -> NewEntries:
    """Gather the new entries of all ranks, in rank order, in one message.

    Ranks with fewer images, or with fewer pixels per image, pad their entries. `options` are those
    of the bank, which must be the same on every rank.
    """
    tensors = [tensor for queue in new if queue is not None for tensor in queue]
    num_pixels = 1 if new.pixels is None else new.pixels[0].shape[2]
    sizes = agree(ranks, f"MemoryBank.update, {options}", [len(tensors[0]), num_pixels])
    max_images, max_pixels = (max(column) for column in zip(*sizes, strict=True))
    if max_images == 0:
        return NewEntries(None, None)
    if new.pixels is not None:
        tensors[0] = pad(tensors[0], max_pixels, dim=2)
    gathered = gather(ranks, [pad(tensor, max_images) for tensor in tensors])
    of_all = iter([tensor.flatten(0, 1) for tensor in gathered])
    return NewEntries(*(None if queue is None else (next(of_all), next(of_all)) for queue in new))


def _sample_pixels(
    emb_map: Tensor,
    labels: Tensor,
    num_classes: int,
    pixels_per_image: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Draw random pixels of each image and class, without replacement.

    Returns:
        Unit vectors, shape (B, C, pixels_per_image, D), and how many are valid, shape (B, C).
    """
    num_images, dim = labels.shape[0], emb_map.shape[1]
    num_groups = num_images * num_classes
    first_group = torch.arange(0, num_groups, num_classes, device=labels.device)
    groups = (first_group[:, None] + labels).masked_fill(labels == IGNORED, num_groups)
    draw = torch.randint(
        1 << DRAW_BITS, (labels.numel(),), generator=generator, device=labels.device
    )
    pixels = sort_pixels(groups.flatten(), num_groups, draw)

    start = pixels.start_of(torch.arange(num_groups + 1, device=labels.device))
    available = start.diff().clamp(max=pixels_per_image)
    index = torch.arange(pixels_per_image, device=labels.device)
    positions = start[:-1, None] + index
    # Missing pixels all read the same pixel, which stays in the cache. It is not used.
    positions = positions.masked_fill(index >= available[:, None], 0)
    vectors = take_pixels(emb_map, pixels.order[positions.flatten()])
    vectors = unit_length(vectors.to(at_least_float32(vectors)))
    return (
        vectors.view(num_images, num_classes, pixels_per_image, dim),
        available.view(num_images, num_classes),
    )
