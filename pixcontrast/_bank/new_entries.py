"""The entries that a batch adds to a bank: regions and pixels of each class.

Which pixels are drawn depends on the labels alone, so that they can be drawn before they have an
embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, agree, gather, pad
from pixcontrast._pixels.groups import DRAW_BITS, sort_pixels, source
from pixcontrast._pixels.regions import (
    Embed,
    Regions,
    mean_directions,
    region_means,
    usable_pixels,
)
from pixcontrast._tensors import IGNORED, at_least_float32, unit_length


class Numbers(NamedTuple):
    """How many pixels of each image and class a bank takes in.

    Attributes:
        classes: number of classes C.
        pixels: largest number of pixels stored; 0 without a pixel queue.
        region_pixels: largest number of pixels whose mean is the region; None: all pixels; 0
            without a region queue.
    """

    classes: int
    pixels: int
    region_pixels: int | None


class DrawnPixels(NamedTuple):
    """Pixels drawn from each image and class, in random order. Both queues use the first of them.

    Attributes:
        indices: int64 flat index of each pixel in [0, B·P), shape (B·C·E,).
        valid: whether the pixel exists, shape (B, C, E). If not, its index is that of any pixel.
        regions: regions of all pixels, if the bank needs them.
    """

    indices: Tensor
    valid: Tensor
    regions: Regions | None


class NewEntries(NamedTuple):
    """New entries of each queue, or None if the bank does not have the queue or adds nothing.

    Each is a pair: unit vectors in at least float32, shape (B, C, E, D), and which of them are
    valid, shape (B, C, E).
    """

    pixels: tuple[Tensor, Tensor] | None
    regions: tuple[Tensor, Tensor] | None


def draw_pixels(
    feature_map: Tensor,
    labels: Tensor,
    embed: Embed | None,
    numbers: Numbers,
    generator: torch.Generator | None,
) -> DrawnPixels:
    """Draw the pixels that both queues need, at random and without replacement.

    Args:
        feature_map (Tensor): embedding map, or input of `embed`, detached, shape (B, C, *S).
        labels (Tensor): int64 labels below `numbers.classes`, or `IGNORED`, shape (B, P).
        embed (callable, optional): computes embeddings from features. None: the features are the
            embeddings.
        numbers (Numbers): how many pixels to draw.
        generator (torch.Generator, optional): source of randomness.
    """
    if labels.numel() == 0:  # images without a pixel add nothing
        feature_map, labels = feature_map[:0], labels[:0]
    regions = None
    if numbers.region_pixels is None:
        regions = region_means(feature_map, labels, numbers.classes, embed)
        labels = labels.masked_fill(~regions.usable, IGNORED)
    elif numbers.pixels and not numbers.region_pixels and embed is None:
        labels = labels.masked_fill(~usable_pixels(feature_map), IGNORED)
    num_images = labels.shape[0] if labels.shape[1] > 0 else 0
    num_drawn = min(max(numbers.pixels, numbers.region_pixels or 0), labels.shape[1])
    if num_images == 0 or num_drawn == 0:
        nothing = torch.zeros(num_images, numbers.classes, num_drawn, device=labels.device)
        return DrawnPixels(labels.new_empty(0), nothing.to(torch.bool), regions)
    num_groups = num_images * numbers.classes
    first_group = torch.arange(0, num_groups, numbers.classes, device=labels.device)
    groups = (first_group[:, None] + labels).masked_fill(labels == IGNORED, num_groups)
    count = (labels.numel(),)
    draw = torch.randint(1 << DRAW_BITS, count, device=labels.device, **source(generator))
    pixels = sort_pixels(groups.flatten(), num_groups, draw)
    start = pixels.start_of(torch.arange(num_groups + 1, device=labels.device))
    index = torch.arange(num_drawn, device=labels.device)
    valid = index < start.diff()[:, None]
    # Missing pixels all read the same pixel, which stays in the cache. It is not used.
    positions = (start[:-1, None] + index).masked_fill(~valid, 0)
    indices = pixels.order[positions.flatten()]
    valid = valid.view(num_images, numbers.classes, num_drawn)
    return DrawnPixels(indices, valid, regions)


def entries_of_rows(rows: Tensor, drawn: DrawnPixels, numbers: Numbers) -> NewEntries:
    """Make the entries of both queues from the embeddings (B·C·E, D) of the drawn pixels.

    Pixels whose embedding is zero or not finite do not count.
    """
    unit = unit_length(rows.to(at_least_float32(rows)))
    usable = unit.abs().amax(dim=1) > 0  # False for NaN
    valid = drawn.valid & usable.view(drawn.valid.shape)
    unit = unit.view(*valid.shape, rows.shape[1])
    new_pixels = new_regions = None
    if numbers.pixels:
        # Not a view, which would keep the pixels of the regions in memory until the update.
        kept = unit[:, :, : numbers.pixels].contiguous()
        new_pixels = (kept, valid[:, :, : numbers.pixels])
    if drawn.regions is not None:
        new_regions = (drawn.regions.means[:, :, None], drawn.regions.present[:, :, None])
    elif numbers.region_pixels:
        of_region = valid[:, :, : numbers.region_pixels, None]
        sums = torch.where(of_region, unit[:, :, : numbers.region_pixels], 0.0).sum(dim=2)
        means, present = mean_directions(sums, of_region.sum(dim=(2, 3)))
        new_regions = (means[:, :, None], present[:, :, None])
    return NewEntries(new_pixels, new_regions)


def gather_entries(new: NewEntries, dtype: torch.dtype, ranks: Ranks, options: str) -> NewEntries:
    """Gather the new entries of all ranks in the bank's dtype, in rank order, in one message.

    Ranks with fewer images, or with fewer pixels per image, pad their entries. `options` are those
    of the bank, which must be the same on every rank.
    """
    queues = [queue for queue in new if queue is not None]
    sizes = agree(ranks, f"MemoryBank.update, {options}", list(queues[0][1].shape[::2]))
    max_images, max_pixels = (max(column) for column in zip(*sizes, strict=True))
    if max_images == 0:
        return NewEntries(None, None)
    tensors = [
        pad(tensor, max_images)
        for vectors, valid in queues
        for tensor in (vectors.to(dtype), valid)
    ]
    if new.pixels is not None:
        tensors[:2] = [pad(tensor, max_pixels, dim=2) for tensor in tensors[:2]]
    of_all = iter([tensor.flatten(0, 1) for tensor in gather(ranks, tensors)])
    return NewEntries(*(None if queue is None else (next(of_all), next(of_all)) for queue in new))
