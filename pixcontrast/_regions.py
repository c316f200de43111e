"""Regions: the mean of the pixels of one class in one image, pointing as they do on average.

Nothing of the map's size is made: what gives a pixel unit length is a factor in the one-hot map of
the labels, and a mean is the product of that with the map as it is. By a kernel, where Triton runs,
the map is read once; else a part of it at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._equation.backends import choose
from pixcontrast._labels import IGNORED
from pixcontrast._pixels import SMALLEST, largest_component, sum_of_squares, unit_length

# Components that are worked on at a time: on the CPU, 4 MB of float32, so that they are read
# from memory once; elsewhere, what keeps operations few and copies small beside the map.
_CHUNK_SEEN = 1 << 20
_CHUNK_UNSEEN = 1 << 24

# Where the sum of a vector's squares is above this and finite, its float32 square root is good,
# and its largest component above `SMALLEST`.
_SAFE_SQUARES = 1e-20


class Regions(NamedTuple):
    """What a batch has in R slots: one region an image and slot.

    Attributes:
        means: (B, R, D) of unit length, float32 at least.
        present: (B, R) whether there is one: it takes a pixel, and pixels that do not cancel out.
        usable: (B, P) whether a pixel's embedding has a direction: it is finite, and not zero.
    """

    means: Tensor
    present: Tensor
    usable: Tensor


def region_means(images: Tensor, slots: Tensor, num_slots: int) -> Regions:
    """Unit-length mean of the unit-length embeddings of each slot in each image.

    Products with the labels' one-hot map: no scatter of numbers that add up, and so the same bits
    on every run. Pixels that are not usable count in no region.

    Args:
        images: (B, D, *S).
        slots: (B, P) int64 in [0, num_slots), or `IGNORED`.
        num_slots: R.
    """
    flat = images.flatten(2)
    sums, usable = (sums_operator if _is_fused(flat) else sums_in_parts)(flat, slots, num_slots)
    # Unit vectors that cancel leave a sum of rounding errors, which points nowhere.
    count = _count_slots(slots.masked_fill(~usable, IGNORED), num_slots)
    present = torch.linalg.vector_norm(sums, dim=2) > 1e-6 * count
    return Regions(unit_length(sums, dim=2), present, usable)


def sums_in_parts(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """(B, R, D) the sum of each slot's unit vectors, and (B, P) which pixels have a direction.

    Args:
        flat: (B, D, P).
        slots: (B, P) int64 in [0, num_slots), or `IGNORED`.
        num_slots: R.
    """
    num_images, dim = flat.shape[:2]
    sums = flat.new_zeros(num_images, num_slots, dim, dtype=_wide(flat))
    usable = torch.zeros_like(slots, dtype=torch.bool)
    for part in _chunks(flat):
        pixels, factor = directions(flat[part[0], :, part[1]])
        usable[part] = factor > 0
        there = slots[part] != IGNORED
        members = factor.new_zeros(factor.shape[0], num_slots, factor.shape[1])
        members.scatter_(1, slots[part].clamp(min=0)[:, None], (factor * there)[:, None])
        # In place, where autocast leaves the operands alone: it would round them to 16 bits.
        sums[part[0]].baddbmm_(members, pixels.transpose(1, 2))
    return sums, usable


@torch.library.custom_op("pixcontrast::region_sums", mutates_args=())
def sums_operator(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """`sums_in_parts` by a kernel; without a gradient."""
    from pixcontrast._region_sums import sum_regions

    return sum_regions(flat, slots, num_slots, SMALLEST)


@sums_operator.register_fake
def _(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    shape = (flat.shape[0], num_slots, flat.shape[1])
    return flat.new_empty(shape, dtype=torch.float32), slots.new_empty(
        slots.shape, dtype=torch.bool
    )


def usable_pixels(images: Tensor) -> Tensor:
    """(B, P) whether a pixel's embedding has a direction: it is finite, and not zero."""
    flat = images.flatten(2)
    if _is_fused(flat):
        no_slot = torch.full((flat.shape[0], flat.shape[2]), IGNORED, device=flat.device)
        found: Tensor = sums_operator(flat, no_slot, 1)[1]
        return found
    usable = flat.new_zeros(flat.shape[0], flat.shape[2], dtype=torch.bool)
    for part in _chunks(flat):
        usable[part] = directions(flat[part[0], :, part[1]])[1] > 0
    return usable


def directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(b, D, p) vectors and (b, p) factors, whose product has unit length; float32 at least.

    Where a vector has no direction, not being finite or being zero, its factor is 0, and
    the vector that comes back is finite.
    """
    vectors = vectors.to(_wide(vectors))
    if check.values_can_be_seen(vectors):
        squares = sum_of_squares(vectors, dim=1)
        if bool(((squares > _SAFE_SQUARES) & (squares < torch.inf)).all()):
            return vectors, squares.rsqrt().squeeze(1)
    # Neither squares nor their sum overflow or vanish once the largest component is 1.
    largest = largest_component(vectors, dim=1)
    usable = torch.isfinite(largest) & (largest > SMALLEST)
    scaled = (vectors / torch.where(usable, largest, 1.0)).nan_to_num_(0.0, 0.0, 0.0)
    factor = sum_of_squares(scaled, dim=1).clamp(min=1.0).rsqrt() * usable
    return scaled, factor.squeeze(1)


def classes_by_image(labels: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Number the classes that stand in each image, where how many classes there are is unknown.

    Args:
        labels: (B, P) int64, `IGNORED` for ignored pixels.
        num_slots: R; of an image with more classes the R lowest labels count.

    Returns:
        (B, P) the slot of each pixel or `IGNORED`, and (B, R) the label of each slot or `IGNORED`.
    """
    ascending, order = labels.sort(dim=1)
    is_new = ascending != IGNORED
    is_new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    slots = is_new.cumsum(dim=1) - 1  # absent labels sort first, before slot 0
    slots = slots.masked_fill(slots >= num_slots, IGNORED)
    labels_of_slots = labels.new_full((labels.shape[0], num_slots + 1), IGNORED)
    # One write a slot, by its first pixel; what has none lands beyond the last.
    place = torch.where(is_new & (slots != IGNORED), slots, num_slots)
    labels_of_slots.scatter_(1, place, ascending)
    return torch.zeros_like(slots).scatter_(1, order, slots), labels_of_slots[:, :num_slots]


def _count_slots(slots: Tensor, num_slots: int) -> Tensor:
    """(B, R) how many pixels stand in each slot. Integers: their order does not matter."""
    image = torch.arange(slots.shape[0], device=slots.device)[:, None] * (num_slots + 1)
    place = image + slots + 1  # the first of each image is for `IGNORED`
    count = slots.new_zeros(slots.shape[0] * (num_slots + 1))
    count.scatter_add_(0, place.flatten(), torch.ones_like(slots).flatten())
    return count.view(slots.shape[0], num_slots + 1)[:, 1:]


def _chunks(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images, and pixels of them, that are worked on at a time: part of one image, or some."""
    num_images, dim, num_pixels = flat.shape
    size = max(1, (_CHUNK_SEEN if check.values_can_be_seen(flat) else _CHUNK_UNSEEN) // dim)
    pixels = max(1, min(size, num_pixels))
    images = max(1, size // pixels)
    for image in range(0, num_images, images):
        for pixel in range(0, num_pixels, pixels):
            yield slice(image, image + images), slice(pixel, pixel + pixels)


def _is_fused(flat: Tensor) -> bool:
    """Whether the kernel takes a map (B, D, P), whose D stands where that of anchors does."""
    return choose("auto", flat) == "triton"


def _wide(vectors: Tensor) -> torch.dtype:
    return torch.promote_types(vectors.dtype, torch.float32)
