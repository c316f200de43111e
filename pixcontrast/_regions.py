"""Regions: the mean of the pixels of one class in one image, pointing as they do on average."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._autocast import without_autocast
from pixcontrast._labels import ABSENT
from pixcontrast._pixels import SMALLEST, largest_component, unit_length

# Pixels of all images that are widened, masked and multiplied at a time: 16,384 of 256 float32
# components are 16 MB.
_CHUNK = 16_384


def usable_pixels(images: Tensor) -> Tensor:
    """(B, P) whether a pixel's embedding has a direction: it is finite, and not zero."""
    flat = images.flatten(2)
    result = torch.zeros(flat.shape[0], flat.shape[2], dtype=torch.bool, device=images.device)
    for part in _chunks(flat):
        largest = largest_component(flat[..., part], dim=1).squeeze(1)
        result[:, part] = torch.isfinite(largest) & (largest > SMALLEST)
    return result


def region_means(images: Tensor, slots: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Unit-length mean of the unit-length embeddings of each slot in each image.

    A product with the labels' one-hot map: no scatter, and so the same bits on every run.

    Args:
        images: (B, D, *S).
        slots: (B, P) int64 in [0, num_slots), or `ABSENT`, as for pixels that are not usable.
        num_slots: R.

    Returns:
        (B, R, D) means, float32 at least, and (B, R) whether there is one: it takes a pixel, and
        pixels that do not cancel out.
    """
    flat = images.flatten(2)
    num_images, dim = flat.shape[:2]
    wide = torch.promote_types(images.dtype, torch.float32)
    sums = flat.new_zeros(num_images, num_slots, dim, dtype=wide)
    count = flat.new_zeros(num_images, num_slots, dtype=wide)
    numbers = torch.arange(num_slots, device=slots.device)[None, :, None]
    for part in _chunks(flat):
        # 0 · NaN in the product would reach the regions of other pixels.
        pixels = torch.where((slots[:, part] != ABSENT)[:, None], flat[..., part].to(wide), 0.0)
        members = (slots[:, None, part] == numbers).to(wide)
        count += members.sum(dim=2)
        # Outside autocast, which would round the sums to 16 bits.
        with without_autocast(images.device):
            sums.baddbmm_(members, unit_length(pixels).transpose(1, 2))
    # Unit vectors that cancel leave a sum of rounding errors, which points nowhere.
    present = torch.linalg.vector_norm(sums, dim=2) > 1e-6 * count
    return unit_length(sums, dim=2), present


def classes_by_image(labels: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Number the classes that stand in each image, where how many classes there are is unknown.

    Args:
        labels: (B, P) int64, `ABSENT` where a pixel takes no part.
        num_slots: R; of an image with more classes the R lowest labels count.

    Returns:
        (B, P) the slot of each pixel or `ABSENT`, and (B, R) the label of each slot or `ABSENT`.
    """
    ascending, order = labels.sort(dim=1)
    is_new = ascending != ABSENT
    is_new[:, 1:] &= ascending[:, 1:] != ascending[:, :-1]
    slots = is_new.cumsum(dim=1) - 1  # absent labels sort first, before slot 0
    slots = slots.masked_fill(slots >= num_slots, ABSENT)
    labels_of_slots = labels.new_full((labels.shape[0], num_slots + 1), ABSENT)
    # One write a slot, by its first pixel; what has none lands beyond the last.
    place = torch.where(is_new & (slots != ABSENT), slots, num_slots)
    labels_of_slots.scatter_(1, place, ascending)
    return torch.zeros_like(slots).scatter_(1, order, slots), labels_of_slots[:, :num_slots]


def _chunks(flat: Tensor) -> list[slice]:
    size = max(1, _CHUNK // max(1, flat.shape[0]))
    return [slice(start, start + size) for start in range(0, flat.shape[2], size)]
