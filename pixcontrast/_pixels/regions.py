"""Compute regions, the unit-length means of the unit-length embeddings of a class in an image.

The map is not normalized. Instead, the one-hot map of the labels is multiplied by the factors that
scale the pixels to unit length, and the sums are its product with the map. Where Triton runs, a
kernel reads the map once; otherwise it is read in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._tensors import IGNORED, SMALLEST, at_least_float32, unit_factors, unit_length
from pixcontrast._triton import choose, is_eager

# Components per chunk. On the CPU a chunk of 4 MB in float32 stays in the cache. On other devices
# larger chunks need fewer launches.
_CPU_CHUNK = 1 << 20
_DEVICE_CHUNK = 1 << 24

Embed = Callable[[Tensor], Tensor]
"""Computes embeddings (b, D, p) from features (b, C, p)."""


class Regions(NamedTuple):
    """Regions of a batch: one for each image and slot.

    A region does not exist if the slot has no usable pixel, or if the pixels cancel out.
    """

    means: Tensor  # unit-length means in at least float32, (B, R, D)
    present: Tensor  # whether the region exists, (B, R)
    usable: Tensor  # whether the embedding of a pixel is finite and not zero, (B, P)


def region_means(
    emb_map: Tensor, slots: Tensor, num_slots: int, embed: Embed | None = None
) -> Regions:
    """Compute the unit-length mean of the unit-length embeddings of each slot in each image.

    The result is deterministic, because sums are matrix products and not scatters. Pixels whose
    embedding is zero or not finite do not count. `slots` (B, P) is the int64 slot of each pixel
    of `emb_map` (B, D, *S), below `num_slots`, or `IGNORED`. With `embed`, `emb_map` is a feature
    map, and its embedding is computed a chunk at a time.
    """
    flat = emb_map.flatten(2)
    if embed is None and _is_fused(flat):
        # In eager mode the wrappers of an operator would take longer than its launches.
        means = _fused_means if is_eager(flat) else means_operator
        return Regions(*means(flat, slots, num_slots))
    sums, usable = sums_in_chunks(flat, slots, num_slots, embed)
    count = _count_slots(slots.masked_fill(~usable, IGNORED), num_slots)
    return Regions(*mean_directions(sums, count), usable)


def mean_directions(sums: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Scale sums (B, R, D) of unit vectors to unit length, and return which have a direction.

    `count` (B, R) is the number of vectors. If they cancel out, the sum is rounding error and has
    no direction.
    """
    return unit_length(sums, dim=2), torch.linalg.vector_norm(sums, dim=2) > 1e-6 * count


def _identity(features: Tensor) -> Tensor:
    return features


def sums_in_chunks(
    flat: Tensor, slots: Tensor, num_slots: int, embed: Embed | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sums (B, R, D) of unit vectors in each slot, and which pixels (B, P) are usable.

    `flat` is the map (B, D, P); `slots` (B, P) is as in `region_means`.
    """
    embed = _identity if embed is None else embed  # PyTorch 2.7 cannot compile `or`

    def allocate(embeddings: Tensor) -> Tensor:
        size = (flat.shape[0], num_slots, embeddings.shape[1])
        return embeddings.new_zeros(size, dtype=at_least_float32(embeddings))

    sums, usable = None, torch.zeros_like(slots, dtype=torch.bool)
    for images, pixels in _chunks(flat):
        embeddings = embed(flat[images, :, pixels])
        sums = allocate(embeddings) if sums is None else sums
        vectors, factor = unit_factors(embeddings)
        usable[images, pixels] = factor > 0
        slot = slots[images, pixels]
        members = factor.new_zeros(factor.shape[0], num_slots, factor.shape[1])
        members.scatter_(1, slot.clamp(min=0)[:, None], (factor * (slot != IGNORED))[:, None])
        # Autocast does not affect in-place products. It would round the operands to 16 bits.
        sums[images].baddbmm_(members, vectors.transpose(1, 2))
    # Without a pixel the projection has to tell the number of dimensions.
    return allocate(embed(flat[:, :, :0])) if sums is None else sums, usable


def _fused_means(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the fields of `Regions` with Triton kernels, without a gradient."""
    from pixcontrast._pixels.region_kernel import merge_regions

    return merge_regions(flat, slots, num_slots, SMALLEST)


means_operator = torch.library.custom_op("pixcontrast::region_means", _fused_means, mutates_args=())


@means_operator.register_fake
def _(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
    present = slots.new_empty((flat.shape[0], num_slots), dtype=torch.bool)
    means = flat.new_empty((*present.shape, flat.shape[1]), dtype=torch.float32)
    return means, present, slots.new_empty(slots.shape, dtype=torch.bool)


def usable_pixels(emb_map: Tensor) -> Tensor:
    """Return whether the embedding of each pixel is finite and not zero, shape (B, P)."""
    flat = emb_map.flatten(2)
    if _is_fused(flat):
        no_slot = torch.full((flat.shape[0], flat.shape[2]), IGNORED, device=flat.device)
        return region_means(emb_map, no_slot, 1).usable
    usable = flat.new_zeros(flat.shape[0], flat.shape[2], dtype=torch.bool)
    for images, pixels in _chunks(flat):
        usable[images, pixels] = unit_factors(flat[images, :, pixels])[1] > 0
    return usable


def classes_by_image(labels: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Assign the classes of each image to slots, if the number of classes is unknown.

    If an image has more than R = `num_slots` classes, only its R lowest labels get slots. Return
    the slot of each pixel (B, P) and the label of each slot (B, R), both `IGNORED` without one.
    """
    ascending, order = labels.sort(dim=1)
    is_new = ascending != IGNORED
    is_new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    slots = is_new.cumsum(dim=1) - 1  # IGNORED sorts first and gets slot -1
    slots = slots.masked_fill(slots >= num_slots, IGNORED)
    labels_of_slots = labels.new_full((labels.shape[0], num_slots + 1), IGNORED)
    # The first pixel of each slot writes its label. All others write beyond the last slot.
    target = torch.where(is_new & (slots != IGNORED), slots, num_slots)
    labels_of_slots.scatter_(1, target, ascending)
    return torch.zeros_like(slots).scatter_(1, order, slots), labels_of_slots[:, :num_slots]


def _count_slots(slots: Tensor, num_slots: int) -> Tensor:
    """Count the pixels of each slot, shape (B, R). Integer sums do not depend on the order."""
    image = torch.arange(slots.shape[0], device=slots.device)[:, None] * (num_slots + 1)
    index = image + slots + 1  # the first counter of each image is for IGNORED
    count = slots.new_zeros(slots.shape[0] * (num_slots + 1))
    count.scatter_add_(0, index.flatten(), torch.ones_like(slots).flatten())
    return count.view(slots.shape[0], num_slots + 1)[:, 1:]


def _chunks(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of images and pixels: several images at a time, or a part of one image."""
    num_images, dim, num_pixels = flat.shape
    size = max(1, (_CPU_CHUNK if check.values_can_be_seen(flat) else _DEVICE_CHUNK) // dim)
    pixels = max(1, min(size, num_pixels))
    images = max(1, size // pixels)
    for image in range(0, num_images, images):
        for pixel in range(0, num_pixels, pixels):
            yield slice(image, image + images), slice(pixel, pixel + pixels)


def _is_fused(flat: Tensor) -> bool:
    """Return whether the kernel supports this map (B, D, P), by the rules for anchors (M, D)."""
    return choose("auto", flat) == "triton"
