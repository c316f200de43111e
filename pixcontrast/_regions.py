"""Regions: the mean of the pixels of one class in one image, pointing as they do on average."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._labels import ABSENT
from pixcontrast._pixels import unit_length

# Pixels of all images that are widened, masked and multiplied at a time: 16,384 of 256 float32
# components are 16 MB.
_CHUNK = 16_384


def inverse_norms(images: Tensor) -> Tensor:
    """(B, P) 1/|x| of every pixel's embedding, 0 where that is zero or not finite.

    float32 at least. A norm that overflows or vanishes in that dtype counts as such.
    """
    flat = images.flatten(2)
    wide = torch.promote_types(images.dtype, torch.float32)
    result = flat.new_zeros(flat.shape[0], flat.shape[2], dtype=wide)
    for part in _chunks(flat):
        norm = torch.linalg.vector_norm(flat[..., part].to(wide), dim=1)
        usable = torch.isfinite(norm) & (norm > 0)
        result[:, part] = torch.where(usable, norm.reciprocal(), 0.0)
    return result


def region_means(
    images: Tensor, slots: Tensor, num_slots: int, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit-length mean of the unit-length embeddings of each slot in each image.

    A product with the labels' one-hot map: no scatter, and so the same bits on every run.

    Args:
        images: (B, D, *S).
        slots: (B, P) int64 in [0, num_slots), or `ABSENT`.
        num_slots: R.
        inverse: (B, P) from `inverse_norms`; pixels with 0 do not count.

    Returns:
        (B, R, D) means, in the dtype of `inverse`, and (B, R) whether there is one: it takes
        a pixel that counts, and pixels that do not cancel out.
    """
    flat = images.flatten(2)
    num_images, dim = flat.shape[:2]
    sums = inverse.new_zeros(num_images, num_slots, dim)
    numbers = torch.arange(num_slots, device=slots.device)[None, :, None]
    for part in _chunks(flat):
        scale = inverse[:, None, part]
        # 0 · NaN in the product would reach the regions of other pixels.
        pixels = torch.where(scale > 0, flat[..., part].to(inverse.dtype), 0.0)
        members = torch.where(slots[:, None, part] == numbers, scale, 0.0)
        # Outside autocast, which would round the sums to 16 bits.
        with torch.autocast(images.device.type, enabled=False):
            sums.baddbmm_(members, pixels.transpose(1, 2))
    # Unit vectors that cancel leave a sum of rounding errors, which points nowhere.
    present = torch.linalg.vector_norm(sums, dim=2) > 1e-6
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
