"""Checks of tensors: what they are, and how they fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pixcontrast._check.options import FLOATING, check_instance, kind_of
from pixcontrast._dtypes import product_is_cast

INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_vectors(name: str, value: object) -> None:
    """A (rows, D) floating tensor with D of at least 1."""
    tensor = _floating(name, value)
    if tensor.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions, (rows, D); got {shape_of(tensor)}")
    if tensor.shape[1] < 1:
        raise ValueError(f"{name}: expected D of at least 1; got {shape_of(tensor)}")


def check_vector_labels(name: str, value: object, vectors_name: str, vectors: Tensor) -> None:
    """A (rows,) integer tensor beside (rows, D) vectors."""
    labels = _integer(name, value)
    if labels.ndim != 1 or labels.shape[0] != vectors.shape[0]:
        raise ValueError(
            f"{name}: expected shape ({vectors.shape[0]},), one label for each row of "
            f"{vectors_name}; got {shape_of(labels)}"
        )
    check_same_device(name, labels, vectors_name, vectors)


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name}: expected the device of {other_name}, {other.device}; got {value.device} "
            f"(move one of them with .to(...))"
        )


def check_same_width(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name}: expected D = {other.shape[1]}, as {other_name} {shape_of(other)}; got "
            f"D = {value.shape[1]} (shape {shape_of(value)})"
        )


def check_generator(generator: object, device: torch.device) -> None:
    check_instance("generator", generator, torch.Generator)
    if not isinstance(generator, torch.Generator):
        return
    found = generator.device
    other_index = None not in (found.index, device.index) and found.index != device.index
    if found.type != device.type or other_index:
        raise ValueError(
            f"generator: expected one on the tensors' device, {device}; got {generator.device} "
            f"(make it with torch.Generator(device={str(device)!r}))"
        )


def check_weight_values(name: str, weight: Tensor) -> None:
    """Non-negative and finite; looked at on the CPU alone, where looking costs no wait."""
    if weight.numel() == 0 or not values_can_be_seen(weight):
        return
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError(
            f"{name}: expected finite weights of at least 0; got values from "
            f"{float(weight.detach().min())} to {float(weight.detach().max())}"
        )


def check_anchor_weight(name: str, value: object, anchors: Tensor) -> None:
    weight = _real_tensor(name, value)
    if weight.shape != anchors.shape[:1]:
        raise ValueError(
            f"{name}: expected shape ({anchors.shape[0]},), one weight for each anchor; got "
            f"{shape_of(weight)}"
        )
    check_same_device(name, weight, "anchors", anchors)
    check_weight_values(name, weight)


def check_embeddings(value: object) -> None:
    """(B, D, *S) with one to three spatial dimensions, or (N, D) points."""
    emb = _floating("emb", value)
    if not 2 <= emb.ndim <= 5:
        raise ValueError(
            f"emb: expected (B, D, *S) with 1 to 3 spatial dimensions, or (N, D) points; got "
            f"{shape_of(emb)}"
        )
    if emb.shape[1] < 1:
        raise ValueError(f"emb: expected D of at least 1; got {shape_of(emb)}")


def check_features(value: object, in_channels: int) -> None:
    """(B, in_channels, *S) with one to three spatial dimensions, or (N, in_channels)."""
    features = _floating("features", value)
    if not 2 <= features.ndim <= 5 or features.shape[1] != in_channels:
        raise ValueError(
            f"features: expected (B, {in_channels}, *S) with 1 to 3 spatial dimensions, or "
            f"(N, {in_channels}); got {shape_of(features)}"
        )


def check_product_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Of one dtype, unless autocast makes them so."""
    if value.dtype != other.dtype and not product_is_cast(value):
        expected, found = (str(t.dtype).removeprefix("torch.") for t in (other, value))
        raise TypeError(
            f"{name}: expected the dtype of {other_name}, {expected}; got {found} (convert one of "
            f"them with .to(...), or run inside of torch.autocast)"
        )


def check_bank_fits(emb: Tensor, dim: int, device: torch.device) -> None:
    if emb.shape[1] != dim:
        raise ValueError(
            f"emb: expected D = {dim}, the width of the bank; got D = {emb.shape[1]} (shape "
            f"{shape_of(emb)})"
        )
    if emb.device != device:
        raise ValueError(
            f"bank: expected the device of emb, {emb.device}; got {device} (move the bank, or the "
            f"loss that holds it, with .to({str(emb.device)!r}))"
        )


def check_pixel_labels(value: object, emb: Tensor) -> None:
    check_pixel_map("labels", _integer("labels", value), emb)


def check_pixel_weight(value: object, emb: Tensor) -> None:
    weight = _real_tensor("weight", value)
    check_pixel_map("weight", weight, emb)
    check_weight_values("weight", weight)


def check_predictions(value: object, emb: Tensor) -> None:
    """Predicted classes (B, *S_any), integer, or logits (B, C, *S_any), floating, C above 1."""
    if not isinstance(value, Tensor):
        raise TypeError(f"preds: expected a tensor or None; got {kind_of(value)}")
    check_is_dense("preds", value)
    if value.ndim == emb.ndim and value.is_floating_point():
        _floating("preds", value)
        if value.shape[1] < 2:
            raise ValueError(
                f"preds: expected logits of at least 2 classes; got {shape_of(value)}, over "
                f"which argmax says nothing (for one logit a pixel pass "
                f"(logit > 0).long().squeeze(1))"
            )
        check_pixel_map("preds", value.select(1, 0), emb)
        return
    if value.is_floating_point():
        raise TypeError(
            f"preds: expected integer classes {_map_shape(emb)} or floating logits with a class "
            f"dimension after the first; got {value.dtype} of shape {shape_of(value)}"
        )
    check_pixel_map("preds", _integer("preds", value), emb)


def check_pixel_map(name: str, value: Tensor, emb: Tensor) -> None:
    """(B, *S_any) beside emb (B, D, *S), or (N,) beside points (N, D)."""
    if value.ndim == emb.ndim and value.shape[1] == 1:
        raise ValueError(
            f"{name}: expected {_map_shape(emb)}; got {shape_of(value)} "
            f"(the fix is {name}.squeeze(1))"
        )
    if value.ndim != emb.ndim - 1:
        raise ValueError(
            f"{name}: expected {_map_shape(emb)} beside emb {shape_of(emb)}; got {shape_of(value)}"
        )
    if value.shape[0] != emb.shape[0]:
        what = "points" if emb.ndim == 2 else "images"
        raise ValueError(
            f"{name}: expected as many {what} as emb, {emb.shape[0]}; got {value.shape[0]} "
            f"(shape {shape_of(value)})"
        )
    if value.numel() == 0 and emb.numel() > 0:
        raise ValueError(f"{name}: expected at least one pixel an image; got {shape_of(value)}")
    check_same_device(name, value, "emb", emb)


def check_sampler_map(name: str, value: object) -> None:
    """(B, P) integer."""
    pixel_map = _integer(name, value)
    if pixel_map.ndim != 2:
        raise ValueError(
            f"{name}: expected 2 dimensions, (B, P); got {shape_of(pixel_map)} (for a map of "
            f"more dimensions pass {name}.flatten(1))"
        )


def check_same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape != other.shape:
        raise ValueError(
            f"{name}: expected the shape of {other_name}, {shape_of(other)}; got {shape_of(value)}"
        )


def check_label_range(labels: Tensor, ignore_index: int, num_classes: int) -> None:
    """No label of `num_classes` or more but for `ignore_index`. Reads values: a wait on a GPU."""
    largest = _largest_beyond(num_classes - 1, labels, ignore_index)
    if largest is not None:
        raise ValueError(
            f"labels: expected classes below num_classes = {num_classes} or ignore_index = "
            f"{ignore_index}; got {largest}"
        )


def check_largest_label(labels: Tensor, ignore_index: int, limit: int) -> None:
    largest = _largest_beyond(limit, labels, ignore_index)
    if largest is not None:
        raise ValueError(
            f"labels: expected classes up to {limit}, the most that sampling has room for; got "
            f"{largest} (number the classes from 0)"
        )


def values_can_be_seen(tensor: Tensor) -> bool:
    """Whether looking at values costs no wait, and there are values to look at."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not isinstance(tensor, FakeTensor)
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _largest_beyond(limit: int, labels: Tensor, ignore_index: int) -> int | None:
    """The largest label above `limit`, but for `ignore_index`; None where there is none."""
    if labels.numel() == 0 or int(labels.max()) <= limit:
        return None
    wide = labels.to(torch.int64)
    beyond = (wide > limit) & (wide != ignore_index)
    return int(wide[beyond].max()) if bool(beyond.any()) else None


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _map_shape(emb: Tensor) -> str:
    return "(N,)" if emb.ndim == 2 else "(B, " + ", ".join("DHW"[5 - emb.ndim :]) + ")"


def _floating(name: str, value: object) -> Tensor:
    return _typed(name, value, FLOATING, "a floating")


def _integer(name: str, value: object) -> Tensor:
    return _typed(name, value, INTEGER, "an integer")


def _real_tensor(name: str, value: object) -> Tensor:
    return _typed(name, value, FLOATING + INTEGER, "a floating or integer")


def _typed(name: str, value: Any, dtypes: Sequence[torch.dtype], kind: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected {kind} tensor; got {kind_of(value)}")
    if value.dtype not in dtypes:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(
            f"{name}: expected {kind} tensor ({expected}); got "
            f"{str(value.dtype).removeprefix('torch.')}"
        )
    check_is_dense(name, value)
    return value


def check_is_dense(name: str, value: Tensor) -> None:
    """Neither sparse nor nested: such tensors lack most operations."""
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor; got the layout {layout}")
