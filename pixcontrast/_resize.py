"""Maps of labels, predictions and weights brought to the size of the embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(..., *S_any) of any dtype to (..., *size), as PyTorch's `mode="nearest"` does.

    Pixels are picked, never mixed: integers of any size stay exact, and so do logits.
    """
    first = maps.ndim - len(size)
    if maps.numel() == 0 or 0 in size:
        return maps.new_zeros(*maps.shape[:first], *size)
    sizes = tuple(zip(maps.shape[first:], size, strict=True))
    if all(old == new for old, new in sizes):
        return maps
    # All dimensions in one go: what is not picked is not read.
    picked = [_picked(old, new, maps.device) for old, new in sizes]
    before = [slice(None)] * first
    where: tuple[slice | Tensor, ...] = (*before, *torch.meshgrid(picked, indexing="ij"))
    return maps[where]


def _picked(old: int, new: int, device: torch.device) -> Tensor:
    """(new,) which of `old` places nearest resizing picks: PyTorch itself is asked."""
    places = torch.arange(old, dtype=torch.float32, device=device)
    return F.interpolate(places[None, None], size=new, mode="nearest")[0, 0].to(torch.int64)
