"""Shapes of maps: points as maps, and labels, predictions and weights at the embedding's size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def as_map(emb: Tensor) -> Tensor:
    """Return a map (B, D, *S) unchanged, and points (N, D) as a view (1, D, N)."""
    return emb.T[None] if emb.ndim == 2 else emb


def flat_map(pixel_map: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map (B, *S_any) to the size of the embedding and flatten it to (B, P).

    Points (N,) become (1, N).
    """
    if pixel_map.ndim == 1:
        return pixel_map[None]
    return resize_nearest(pixel_map, size).flatten(1)


def flat_predictions(preds: Tensor, size: Sequence[int]) -> Tensor:
    """Convert predicted classes or logits to classes (B, P) at the size of the embedding."""
    if not preds.is_floating_point():
        return flat_map(preds, size)
    if preds.ndim == 2:
        return _argmax(preds.detach())[None]
    # Resize before argmax: nearest resizing commutes with it, and fewer pixels need an argmax.
    return _argmax(resize_nearest(preds.detach(), size)).flatten(1)


def _argmax(logits: Tensor) -> Tensor:
    """Return the argmax over dim 1. `max` takes a fifth of the time of `argmax` on the CPU."""
    return logits.max(dim=1).indices


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (..., *S_any) of any dtype to (..., *size), as PyTorch's `mode="nearest"` does.

    Pixels are selected, never averaged: integers and logits stay exact.
    """
    num_leading = maps.ndim - len(size)
    if maps.numel() == 0 or 0 in size:
        return maps.new_zeros(*maps.shape[:num_leading], *size)
    sizes = tuple(zip(maps.shape[num_leading:], size, strict=True))
    if all(old == new for old, new in sizes):
        return maps
    # Index all dimensions in one operation, so that only the selected pixels are read.
    selected = [_nearest_indices(old, new, maps.device) for old, new in sizes]
    leading = [slice(None)] * num_leading
    index: tuple[slice | Tensor, ...] = (*leading, *torch.meshgrid(selected, indexing="ij"))
    return maps[index]


def _nearest_indices(old: int, new: int, device: torch.device) -> Tensor:
    """Return the (new,) indices into `old` pixels that PyTorch's nearest resizing selects."""
    indices = torch.arange(old, dtype=torch.float32, device=device)
    return F.interpolate(indices[None, None], size=new, mode="nearest")[0, 0].to(torch.int64)
