"""Check the maps of a call, resize labels and predictions, and take pixels of a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._check import (
    check_same_device,
    check_tensor,
    check_weights,
    expect,
    refuse,
    shape_of,
)
from pixcontrast._tensors import mark_ignored
from pixcontrast._triton import takes_kernels


def check_feature_map(
    name: str, value: object, channels: str, num_channels: int | None = None
) -> Tensor:
    """Accept a floating point tensor of shape (B, channels, *S) or (N, channels).

    `channels` names the dimension in messages; `num_channels` is its size, or None for any but 0.
    """
    features = check_tensor(name, value, "a floating")
    valid = num_channels is None or (features.ndim > 1 and features.shape[1] == num_channels)
    expected = f"(B, {channels}, *S) with 1 to 3 spatial dimensions, or (N, {channels})"
    expect(valid and 2 <= features.ndim <= 5, name, expected, features.shape)
    expect(features.shape[1] >= 1, name, f"{channels} of at least 1", features.shape)
    return features


def check_labels(value: object, emb: Tensor) -> Tensor:
    """Accept labels (B, *S_any) or (B, 1, *S_any), and return them as (B, *S_any)."""
    is_one_hot = isinstance(value, Tensor) and value.ndim == emb.ndim and value.shape[1] > 1
    fix = "the fix is labels.argmax(1)" if is_one_hot else ""
    labels = _pixel_map("labels", check_tensor("labels", value, "an integer or bool", fix), emb)
    size = labels.shape[1:]
    if emb.ndim > 2 and size == emb.shape[1:-1] and size != emb.shape[2:]:
        got = f"{shape_of(emb)}, which fits labels {shape_of(labels)} with channels last"
        refuse("emb", "(B, D, *S), channels first", got, "the fix is emb.movedim(-1, 1)")
    return labels


def check_pixel_weight(value: object, emb: Tensor) -> Tensor:
    """Accept weights (B, *S_any) or (B, 1, *S_any), and return them as (B, *S_any)."""
    weight = check_tensor("weight", value, "a floating, integer or bool")
    return check_weights("weight", _pixel_map("weight", weight, emb))


def check_predictions(value: object, emb: Tensor) -> Tensor:
    """Accept classes (B, *S_any) or (B, 1, *S_any), or logits (B, C, *S_any), C at least 2.

    Return classes (B, *S_any), or the logits.
    """
    preds = check_tensor("preds", value, "a floating, integer or bool")
    if not preds.is_floating_point():
        return _pixel_map("preds", preds, emb)
    if preds.ndim != emb.ndim:
        expected = f"integer classes {_map_shape(emb)} or floating logits with a class dimension"
        got = f"{preds.dtype} of shape {shape_of(preds)}"
        fix = "for the probability of one class pass preds > 0.5"
        refuse("preds", f"{expected} after the first", got, fix, TypeError)
    fix = "argmax over one class is always 0; for one logit per pixel pass "
    fix += "(logit > 0).long().squeeze(1)"
    expect(preds.shape[1] >= 2, "preds", "logits of at least 2 classes", preds.shape, fix)
    _pixel_map("preds", preds.select(1, 0), emb)
    return preds


def _pixel_map(name: str, value: Tensor, emb: Tensor) -> Tensor:
    """Accept (B, *S_any) for an embedding (B, D, *S), and (N,) for points (N, D).

    A channel dimension of one is removed.
    """
    if value.ndim == emb.ndim and value.shape[1] == 1:
        value = value.squeeze(1)
    if value.ndim != emb.ndim - 1:
        is_one_hot = value.ndim == emb.ndim and name != "weight"
        fix = f"for one-hot {name} pass {name}.argmax(1)" if is_one_hot else ""
        refuse(name, f"{_map_shape(emb)} for emb {shape_of(emb)}", value.shape, fix)
    if value.shape[0] != emb.shape[0]:
        unit = "points" if emb.ndim == 2 else "images"
        expected = f"the same number of {unit} as emb, {emb.shape[0]}"
        refuse(name, expected, f"{value.shape[0]} (shape {shape_of(value)})")
    is_missing = value.numel() == 0 and emb.numel() > 0
    expect(not is_missing, name, "at least one pixel per image", value.shape)
    check_same_device(name, value, "emb", emb)
    return value


def _map_shape(emb: Tensor) -> str:
    return "(N,)" if emb.ndim == 2 else "(B, " + ", ".join("DHW"[5 - emb.ndim :]) + ")"


def as_map(emb: Tensor) -> Tensor:
    """Return a map (B, D, *S) unchanged, and points (N, D) as a view (1, D, N)."""
    return emb.T[None] if emb.ndim == 2 else emb


def flat_maps(
    labels: Tensor,
    preds: Tensor | None,
    weight: Tensor | None,
    size: Sequence[int],
    ignore_index: int,
    num_classes: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Return marked labels and predicted classes (B, P) at the `size` of the embedding.

    Args:
        labels (Tensor): integer labels, shape (B, *S_any), or (N,) for points.
        preds (Tensor, optional): classes like `labels`, or logits (B, C, *S_any) or (N, C).
        weight (Tensor, optional): resized weight; pixels of weight 0 are ignored, shape (B, P).
        size (sequence of int): spatial size S of the embedding.
        ignore_index (int): label of ignored pixels.
        num_classes (int, optional): larger labels are ignored. Default: None, no limit.
    """
    if takes_kernels(labels) and 0 not in (labels.numel(), math.prod(size)):
        from pixcontrast._pixels.map_kernel import resize_maps

        if labels.ndim == 1:
            labels = labels[None]
            preds = None if preds is None else preds.movedim(0, -1)[None]
        return resize_maps(labels, preds, weight, size, ignore_index, num_classes)
    marked = mark_ignored(flat_map(labels, size), ignore_index, num_classes, weight)
    return marked, None if preds is None else flat_predictions(preds, size)


def flat_map(pixel_map: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map (B, *S_any) to `size` and flatten it to (B, P); points (N,) become (1, N)."""
    if pixel_map.ndim == 1:
        return pixel_map[None]
    return resize_nearest(pixel_map, size).flatten(1)


def flat_predictions(preds: Tensor, size: Sequence[int]) -> Tensor:
    """Convert predicted classes or logits to classes (B, P) at the size of the embedding."""
    if not preds.is_floating_point():
        return flat_map(preds, size)
    logits = preds.detach()
    if logits.ndim > 2:
        # Resize before argmax: nearest resizing commutes with it, and fewer pixels need an argmax.
        logits = resize_nearest(logits, size)
    classes = logits.max(dim=1).indices  # takes a fifth of the time of argmax on the CPU
    return classes[None] if preds.ndim == 2 else classes.flatten(1)


def resize_nearest(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (..., *S_any) of any dtype to (..., *size), as PyTorch's `mode="nearest"` does.

    Pixels are selected, never averaged: integers and logits stay exact.
    """
    num_leading = maps.ndim - len(size)
    if maps.numel() == 0 or 0 in size:
        return maps.new_zeros(*maps.shape[:num_leading], *size)
    sizes = tuple(zip(maps.shape[num_leading:], size, strict=True))
    index: list[slice | Tensor] = [slice(None)] * num_leading
    if all(old % new == 0 for old, new in sizes):  # every k-th pixel, as a view
        index += [slice(None, None, old // new) for old, new in sizes]
    else:
        # Index all dimensions in one operation, so that only the selected pixels are read.
        selected = [_nearest_indices(old, new, maps.device) for old, new in sizes]
        index += torch.meshgrid(selected, indexing="ij")
    return maps[tuple(index)]


def _nearest_indices(old: int, new: int, device: torch.device) -> Tensor:
    """Return the (new,) indices into `old` pixels that PyTorch's nearest resizing selects."""
    indices = torch.arange(old, dtype=torch.float32, device=device)
    return F.interpolate(indices[None, None], size=new, mode="nearest")[0, 0].to(torch.int64)
