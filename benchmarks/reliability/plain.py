"""Maps, pixels and regions in float64, written as plainly as possible; and the judge's verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-30
"""A vector whose components are all at most this large counts as zero."""


class WrongError(Exception):
    """A value is wrong; the message describes how."""


def expect(holds: bool, wrong: str) -> None:
    """Raise `WrongError` with a description unless a condition holds."""
    if not holds:
        raise WrongError(wrong)


def is_readable(*values: Any) -> bool:
    """Return whether the values of all tensors can be read."""
    return all(v.device.type == "cpu" for v in values if isinstance(v, Tensor))


def is_valid(labels: Tensor, ignore: int) -> Tensor:
    """Return which labels are not ignored; the conversion covers unsigned dtypes."""
    wide = labels.to(torch.int64)
    return (wide >= 0) & (wide != ignore)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two dicts have tensors of the same names, shapes, dtypes and bits."""

    def content(tensor: Tensor) -> tuple[Any, ...]:
        numbers = tensor.contiguous().flatten().view(torch.uint8)
        return tensor.shape, tensor.dtype, numbers.numpy().tobytes()

    return {n: content(t) for n, t in one.items()} == {n: content(t) for n, t in other.items()}


def pixels_of(emb: Tensor) -> Tensor:
    """Convert (B, D, *S) to (B, P, D) in float64, and points (N, D) to (1, N, D)."""
    maps = emb.T[None] if emb.ndim == 2 else emb
    return maps.flatten(2).transpose(1, 2).double()


def flat(pixel_map: Tensor, emb: Tensor) -> Tensor:
    """Resize a map to the embedding by nearest neighbor, as (B, P); points become (1, N).

    A channel dimension of one is removed.
    """
    if pixel_map.ndim == emb.ndim and pixel_map.shape[1] == 1:
        pixel_map = pixel_map.squeeze(1)
    if emb.ndim == 2:
        return pixel_map[None]
    size = emb.shape[2:]
    if pixel_map.numel() == 0 or 0 in size:
        return pixel_map.new_zeros(emb.shape[0], size.numel())
    wide = pixel_map[:, None].double()
    return F.interpolate(wide, size=size, mode="nearest").flatten(1).to(pixel_map.dtype)


def directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize (…, D) to unit length.

    Returns:
        The unit vectors, zero for those without a direction, and (…,) which have one: the finite
        ones that are not zero.
    """
    vectors = vectors.double()
    largest = vectors.abs().amax(dim=-1) if vectors.shape[-1] else vectors.sum(dim=-1)
    usable = torch.isfinite(vectors).all(dim=-1) & (largest > SMALLEST)
    vectors = torch.where(usable[..., None], vectors, 0.0)
    scaled = vectors / torch.where(usable, largest, 1.0)[..., None]
    return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=0.5), usable


class Region(NamedTuple):
    """The pixels of one class in one image.

    Attributes:
        image, label: identify the region.
        mean: their mean direction (D,); None if they cancel out or none is usable.
        size: number of its pixels.
        off: allowed error of a mean in float32 (float64 for float64). Infinite if rounding decides
            whether the region has a mean.
    """

    image: int
    label: int
    mean: Tensor | None
    size: int
    off: float


def regions_of(pixels: Tensor, dtype: torch.dtype, labels: Tensor, ignore: int) -> Iterator[Region]:
    """Yield the regions of embeddings (B, P, D) of a dtype by image and class; labels (B, P)."""
    unit, usable = directions(pixels)
    per_vector = (unit.shape[2] + 8) * rounding_of(dtype)
    for image, own in enumerate(labels.to(torch.int64)):
        for label in own[is_valid(own, ignore)].unique().tolist():
            members = unit[image][(own == label) & usable[image]]
            count, total = len(members), members.sum(dim=0)
            length = float(total.norm())
            # Error (D + 8)·ε of each vector, and count·ε of each from their sum.
            error = count * (per_vector + count * rounding_of(dtype))
            mean, off = None, 0.0
            if length > 1e-6 * count + error:
                mean, off = total / length, 2 * error / length + per_vector
            elif length > 1e-6 * count - error:
                off = torch.inf
            yield Region(image, label, mean, int((own == label).sum()), off)


def rounding_of(dtype: torch.dtype) -> float:
    """Return the eps that vectors of a dtype are computed with: at least float32's."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps
