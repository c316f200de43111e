"""Draw pixels from groups, the pixels of one class in one image, and compute regions, their means.

For the means the map is not normalized. Instead, the one-hot map of the labels is multiplied by the
factors that scale the pixels to unit length, and the sums are its product with the map. Where
Triton runs, a kernel reads the map once; otherwise it is read in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._tensors import IGNORED, SMALLEST, at_least_float32, unit_factors, unit_length
from pixcontrast._triton import choose

_LABEL_BITS = 24
MAX_LABEL = (1 << _LABEL_BITS) - 1
"""The largest label that the sort key of (image, class) groups can hold."""

DRAW_BITS = 31

# Components per chunk. On the CPU a chunk of 4 MB in float32 stays in the cache. On other devices
# larger chunks need fewer launches.
_CPU_CHUNK = 1 << 20
_DEVICE_CHUNK = 1 << 24

Embed = Callable[[Tensor], Tensor]
"""Computes embeddings (b, D, p) from features (b, C, p)."""


class SortedPixels(NamedTuple):
    """All n pixels, sorted by group, in random order within a group. Ignored pixels come last."""

    order: Tensor  # pixel at each position, (n,)
    keys: Tensor  # ascending sort keys: the group, followed by random bits, (n,)
    random_bits: int

    def start_of(self, groups: Tensor) -> Tensor:
        """Return the first position of each group; for an empty group, that of the next group."""
        return torch.searchsorted(self.keys, groups << self.random_bits)


def sort_pixels(groups: Tensor, num_groups: int, draw: Tensor) -> SortedPixels:
    """Sort n pixels by group and shuffle them within each group.

    `groups` (n,) is the int64 group of each pixel, or `num_groups` (at most 2 ** 61) for ignored
    pixels. `draw` (n,) is random int64 in [0, 2 ** `DRAW_BITS`).
    """
    random_bits = min(DRAW_BITS, 62 - num_groups.bit_length())
    draw = draw >> (DRAW_BITS - random_bits)
    keys, order = torch.add(draw, groups, alpha=1 << random_bits).sort(stable=True)
    return SortedPixels(order, keys, random_bits)


class DrawnGroups(NamedTuple):
    """A groups, some of which may not exist: these have size 0.

    Within a group, pixels marked `first` precede the others. Both parts are in random order.
    """

    order: Tensor  # pixel at each position, (n,)
    start: Tensor  # position of the first pixel of each group, ascending, (A,)
    size: Tensor  # number of pixels of each group, 0 if it does not exist, (A,)
    num_first: Tensor  # number of pixels marked `first`, (A,)


def draw_groups(
    labels: Tensor,
    first: Tensor | None,
    max_groups: int,
    min_pixels: int,
    generator: torch.Generator | None,
) -> DrawnGroups:
    """Return all groups of at least `min_pixels` pixels, or a random A of them.

    A = min(max_groups, n), with n = B·P pixels. Positions and sizes of groups are found by binary
    search in the sorted keys, because a pass over all pixels takes longer. Labels (B, P) are int64
    up to `MAX_LABEL`, or `IGNORED`. The mask `first` (B, P) marks the pixels that come first in
    their group; None marks no pixel.
    """
    num_images, device = labels.shape[0], labels.device
    num_groups = num_images << _LABEL_BITS
    image = torch.arange(num_images, device=device)[:, None] << _LABEL_BITS
    # A group has two halves, 2·group for the pixels that come first and 2·group + 1 for the others.
    last = torch.ones_like(labels, dtype=torch.bool) if first is None else ~first
    halves = torch.add(last, image + labels, alpha=2)
    halves = halves.masked_fill(labels == IGNORED, 2 * num_groups).flatten()
    # One draw serves two purposes: the upper bits shuffle pixels, the lower bits select groups.
    draw = draw_integers(halves, 2 * DRAW_BITS, generator)
    pixels = sort_pixels(halves, 2 * num_groups, draw >> DRAW_BITS)

    group = pixels.keys >> (pixels.random_bits + 1)
    priority = draw & ((1 << DRAW_BITS) - 1)
    priority = priority.masked_fill(~_starts(group, num_groups, min_pixels), -1)
    # Select the A groups with the highest random priority; with fewer groups, all of them.
    priority, start = priority.topk(min(max_groups, labels.numel()), sorted=False)
    start, selected = start.sort()
    exists = priority[selected] >= 0

    half = group[start] << 1
    num_first = pixels.start_of(half + 1) - start
    size = pixels.start_of(half + 2) - start
    return DrawnGroups(pixels.order, start, size * exists, num_first * exists)


def share_of_class(
    groups: DrawnGroups, labels: Tensor, max_per_class: int, generator: torch.Generator | None
) -> Tensor:
    """Return the share of each group (A,) of `max_per_class`, the limit of pixels of one class.

    The groups of a class get equal shares. The remainder goes to a random choice of them.
    """
    label = labels.flatten()[groups.order[groups.start]]
    label = label.masked_fill(groups.size == 0, IGNORED)
    draw = draw_integers(label, DRAW_BITS, generator)
    keys, order = ((label << DRAW_BITS) + draw).sort(stable=True)
    first, end = (torch.searchsorted(keys, (label + i) << DRAW_BITS) for i in (0, 1))
    position = torch.arange(len(order), device=order.device)
    position = torch.empty_like(order).scatter_(0, order, position)
    num_groups = end - first
    return max_per_class // num_groups + (position - first < max_per_class % num_groups)


def draw_integers(like: Tensor, bits: int, generator: torch.Generator | None) -> Tensor:
    """Draw random int64 in [0, 2 ** `bits`), in the shape and on the device of a tensor."""
    return torch.randint(1 << bits, like.shape, device=like.device, **source(generator))


def source(generator: torch.Generator | None) -> dict[str, Any]:
    """Return the keyword arguments that make a random function draw from a generator.

    torch.compile does not support `generator=None` beside a symbolic size.
    """
    return {} if generator is None else {"generator": generator}


def _starts(group: Tensor, num_groups: int, min_pixels: int) -> Tensor:
    """Return where groups of at least `min_pixels` pixels start; `group` (n,) is ascending."""
    num_candidates = max(group.shape[0] - min_pixels + 1, 0)
    starts = torch.zeros(group.shape, dtype=torch.bool, device=group.device)
    starts[:num_candidates] = group[:num_candidates] == group[min_pixels - 1 :]
    starts[1:] &= group[1:] != group[:-1]
    return starts & (group < num_groups)


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
        sums, usable = sums_operator(flat, slots, num_slots)
    else:
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
    like = embed(flat[:, :, :0])
    size = (flat.shape[0], num_slots, like.shape[1])
    sums = like.new_zeros(size, dtype=at_least_float32(like))
    usable = torch.zeros_like(slots, dtype=torch.bool)
    for images, pixels in _chunks(flat):
        vectors, factor = unit_factors(embed(flat[images, :, pixels]))
        usable[images, pixels] = factor > 0
        slot = slots[images, pixels]
        members = factor.new_zeros(factor.shape[0], num_slots, factor.shape[1])
        members.scatter_(1, slot.clamp(min=0)[:, None], (factor * (slot != IGNORED))[:, None])
        # Autocast does not affect in-place products. It would round the operands to 16 bits.
        sums[images].baddbmm_(members, vectors.transpose(1, 2))
    return sums, usable


@torch.library.custom_op("pixcontrast::region_sums", mutates_args=())
def sums_operator(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Compute `sums_in_chunks` with a Triton kernel, without a gradient."""
    from pixcontrast._pixels.region_kernel import sum_regions

    return sum_regions(flat, slots, num_slots, SMALLEST)


@sums_operator.register_fake
def _(flat: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    sums = flat.new_empty((flat.shape[0], num_slots, flat.shape[1]), dtype=torch.float32)
    return sums, slots.new_empty(slots.shape, dtype=torch.bool)


def usable_pixels(emb_map: Tensor) -> Tensor:
    """Return whether the embedding of each pixel is finite and not zero, shape (B, P)."""
    flat = emb_map.flatten(2)
    if _is_fused(flat):
        no_slot = torch.full((flat.shape[0], flat.shape[2]), IGNORED, device=flat.device)
        found: Tensor = sums_operator(flat, no_slot, 1)[1]
        return found
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
