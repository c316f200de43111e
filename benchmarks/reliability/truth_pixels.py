"""Maps, pixels and regions in float64, written as plainly as possible; and the judge's verdict."""

from __future__ import annotations

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


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without graph, subclass or lazy negation."""
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def without_channel(pixel_map: Tensor, emb: Tensor) -> Tensor:
    """Remove a channel dimension of one; logits have several classes."""
    has_channel = pixel_map.ndim == emb.ndim and pixel_map.shape[1] == 1
    return pixel_map.squeeze(1) if has_channel else pixel_map


def is_readable(*values: Any) -> bool:
    """Return whether the values of all tensors can be read."""
    return all(v.device.type == "cpu" for v in values if isinstance(v, Tensor))


def is_valid(labels: Tensor, ignore: int) -> Tensor:
    """Return which labels are not ignored; the conversion covers unsigned dtypes."""
    wide = labels.to(torch.int64)
    return (wide >= 0) & (wide != ignore)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and bits."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (t.contiguous().flatten().view(torch.uint8) for t in (one, other))
    return first.equal(second)


def pixels_of(emb: Tensor) -> Tensor:
    """Convert (B, D, *S) to (B, P, D) in float64, and points (N, D) to (1, N, D)."""
    maps = emb.T[None] if emb.ndim == 2 else emb
    return maps.flatten(2).transpose(1, 2).double()


def flat(pixel_map: Tensor, emb: Tensor) -> Tensor:
    """Resize a map to the embedding by nearest neighbor, as (B, P); points become (1, N)."""
    if emb.ndim == 2:
        return pixel_map[None]
    size = emb.shape[2:]
    if pixel_map.numel() == 0 or 0 in size:
        return pixel_map.new_zeros(emb.shape[0], size.numel())
    wide = pixel_map[:, None].double()
    return F.interpolate(wide, size=size, mode="nearest").flatten(1).to(pixel_map.dtype)


def flat_predictions(preds: Tensor, emb: Tensor) -> Tensor:
    """Convert predicted classes or logits to classes (B, P)."""
    if preds.is_floating_point():
        if preds.numel() == 0:
            return preds.new_zeros(flat(preds[:, 0], emb).shape, dtype=torch.int64)
        preds = preds.argmax(dim=1)
    return flat(preds, emb)


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
        off: allowed error of a mean in float32 (float64 for float64). Infinite if rounding decides
            whether the region has a mean.
    """

    image: int
    label: int
    mean: Tensor | None
    off: float


def regions_of(emb: Tensor, labels: Tensor, ignore: int) -> list[Region]:
    """List the regions of a batch by image and class; `labels` are (B, P)."""
    unit, usable = directions(pixels_of(emb))
    dim = unit.shape[2]
    eps = torch.finfo(torch.promote_types(emb.dtype, torch.float32)).eps
    found = []
    for image, own in enumerate(labels.to(torch.int64)):
        for label in own.unique().tolist():
            if label < 0 or label == ignore:
                continue
            members = unit[image][(own == label) & usable[image]]
            count, total = len(members), members.sum(dim=0)
            length = float(total.norm())
            # Error (D + 8)·ε of each vector, and count·ε of each from their sum.
            error = count * (dim + 8 + count) * eps
            if not length > 1e-6 * count - error:
                found.append(Region(image, label, None, 0.0))
            elif length <= 1e-6 * count + error:
                found.append(Region(image, label, None, torch.inf))
            else:
                off = 2 * error / length + (dim + 8) * eps
                found.append(Region(image, label, total / length, off))
    return found
