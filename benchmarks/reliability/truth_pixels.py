"""Maps, pixels and regions, written as plainly as they can be, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-30
"""A vector with no component above this counts as zero."""


def plain(tensor: Tensor) -> Tensor:
    """Without graph, subclass or lazy sign."""
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def seen(*values: Any) -> bool:
    """Whether there are values to look at."""
    return all(v.device.type == "cpu" for v in values if isinstance(v, Tensor))


def is_present(labels: Tensor, ignore: int) -> Tensor:
    """Which labels take part; of unsigned ones too, in the dtype that holds any."""
    wide = labels.to(torch.int64)
    return (wide >= 0) & (wide != ignore)


def pixels_of(emb: Tensor) -> Tensor:
    """(B, P, D) float64 of (B, D, *S), or (1, N, D) of points (N, D)."""
    maps = emb.T[None] if emb.ndim == 2 else emb
    return maps.flatten(2).transpose(1, 2).double()


def flat(pixel_map: Tensor, emb: Tensor) -> Tensor:
    """(B, P) of a map, resized to the embedding by nearest; (1, N) of points."""
    if emb.ndim == 2:
        return pixel_map[None]
    size = emb.shape[2:]
    if pixel_map.numel() == 0 or 0 in size:
        return pixel_map.new_zeros(emb.shape[0], size.numel())
    wide = pixel_map[:, None].double()
    return F.interpolate(wide, size=size, mode="nearest").flatten(1).to(pixel_map.dtype)


def flat_predictions(preds: Tensor, emb: Tensor) -> Tensor:
    """(B, P) predicted classes, of classes or of logits."""
    if preds.is_floating_point():
        if preds.shape[0] == 0 or preds.numel() == 0:
            return preds.new_zeros(flat(preds[:, 0], emb).shape, dtype=torch.int64)
        preds = preds.argmax(dim=1)
    return flat(preds, emb)


def directions(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(…, D) of unit length or zero, and (…,) which have a direction: finite, and not zero."""
    vectors = vectors.double()
    largest = vectors.abs().amax(dim=-1) if vectors.shape[-1] else vectors.sum(dim=-1)
    usable = torch.isfinite(vectors).all(dim=-1) & (largest > SMALLEST)
    vectors = torch.where(usable[..., None], vectors, 0.0)
    scaled = vectors / torch.where(usable, largest, 1.0)[..., None]
    return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=0.5), usable


class Region(NamedTuple):
    """The pixels of one class in one image, and where they point on average.

    Attributes:
        image, label: which.
        mean: (D,) of unit length; None where its pixels cancel out or none is usable.
        off: by which length a mean in float32 (float64 for float64) may differ from this one;
            infinite where even whether there is one is a matter of rounding.
    """

    image: int
    label: int
    mean: Tensor | None
    off: float


def regions_of(emb: Tensor, labels: Tensor, ignore: int) -> list[Region]:
    """Every class of every image, images in order and classes ascending; `labels` (B, P)."""
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
            # Of each vector (D + 8)·ε, of a sum of so many vectors count·ε of each.
            error = count * (dim + 8 + count) * eps
            if not length > 1e-6 * count - error:
                found.append(Region(image, label, None, 0.0))
            elif length <= 1e-6 * count + error:
                found.append(Region(image, label, None, torch.inf))
            else:
                off = 2 * error / length + (dim + 8) * eps
                found.append(Region(image, label, total / length, off))
    return found
