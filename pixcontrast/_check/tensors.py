"""Checks of tensors: dtype, shape, device and range of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pixcontrast._check.message import expect, kind_of, refuse
from pixcontrast._check.options import FLOATING, check_instance

INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_vectors(name: str, value: object) -> None:
    """Accept a floating point tensor of shape (rows, D) with D at least 1."""
    vectors = _floating(name, value)
    expect(vectors.ndim == 2, name, "2 dimensions, (rows, D)", shape_of(vectors))
    expect(vectors.shape[1] >= 1, name, "D of at least 1", shape_of(vectors))


def check_vector_labels(name: str, value: object, vectors_name: str, vectors: Tensor) -> None:
    """Accept an integer tensor of shape (rows,) for vectors of shape (rows, D)."""
    labels = _integer(name, value)
    if labels.ndim != 1 or labels.shape[0] != vectors.shape[0]:
        expected = f"shape ({vectors.shape[0]},), one label for each row of {vectors_name}"
        refuse(name, expected, shape_of(labels))
    check_same_device(name, labels, vectors_name, vectors)


def check_anchor_weight(name: str, value: object, anchors: Tensor) -> None:
    """Accept a weight of shape (M,) for anchors of shape (M, D)."""
    weight = _real(name, value)
    if weight.shape != anchors.shape[:1]:
        expected = f"shape ({anchors.shape[0]},), one weight for each anchor"
        refuse(name, expected, shape_of(weight))
    check_same_device(name, weight, "anchors", anchors)
    _check_weight_values(name, weight)


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        expected = f"the device of {other_name}, {other.device}"
        refuse(name, expected, str(value.device), "move one of them with .to(...)")


def check_same_width(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.shape[1] != other.shape[1]:
        expected = f"D = {other.shape[1]}, as {other_name} {shape_of(other)}"
        refuse(name, expected, f"D = {value.shape[1]} (shape {shape_of(value)})")


def check_generator(generator: object, device: torch.device) -> None:
    """Accept a generator on this device, or None."""
    check_instance("generator", generator, torch.Generator)
    if not isinstance(generator, torch.Generator):
        return
    found = generator.device
    other_index = None not in (found.index, device.index) and found.index != device.index
    if found.type != device.type or other_index:
        fix = f"create it with torch.Generator(device={str(device)!r})"
        refuse("generator", f"a generator on the tensors' device, {device}", str(found), fix)


def check_feature_map(
    name: str, value: object, channels: str, num_channels: int | None = None
) -> None:
    """Accept a floating point tensor of shape (B, channels, *S) or (N, channels).

    Args:
        name (str): name of the argument.
        value (object): what the caller passed.
        channels (str): the channel dimension, as shown in the message.
        num_channels (int, optional): required number of channels. Default: None, any but 0.
    """
    features = _floating(name, value)
    valid = num_channels is None or (features.ndim > 1 and features.shape[1] == num_channels)
    if not (valid and 2 <= features.ndim <= 5):
        expected = f"(B, {channels}, *S) with 1 to 3 spatial dimensions, or (N, {channels})"
        refuse(name, expected, shape_of(features))
    expect(features.shape[1] >= 1, name, f"{channels} of at least 1", shape_of(features))


def check_labels(value: object, emb: Tensor) -> None:
    _check_pixel_map("labels", _integer("labels", value), emb)


def check_pixel_weight(value: object, emb: Tensor) -> None:
    weight = _real("weight", value)
    _check_pixel_map("weight", weight, emb)
    _check_weight_values("weight", weight)


def check_predictions(value: object, emb: Tensor) -> None:
    """Accept integer classes (B, *S_any) or floating point logits (B, C, *S_any), C at least 2."""
    if not isinstance(value, Tensor):
        refuse("preds", "a tensor or None", kind_of(value), error=TypeError)
    _check_strided("preds", value)
    if not value.is_floating_point():
        _check_pixel_map("preds", _integer("preds", value), emb)
    elif value.ndim == emb.ndim:
        expect(
            _floating("preds", value).shape[1] >= 2,
            "preds",
            "logits of at least 2 classes",
            shape_of(value),
            "argmax over one class is always 0; for one logit per pixel pass "
            "(logit > 0).long().squeeze(1)",
        )
        _check_pixel_map("preds", value.select(1, 0), emb)
    else:
        classes = f"integer classes {_map_shape(emb)}"
        refuse(
            "preds",
            f"{classes} or floating logits with a class dimension after the first",
            f"{value.dtype} of shape {shape_of(value)}",
            error=TypeError,
        )


def check_sampler_map(name: str, value: object) -> None:
    """Accept an integer tensor of shape (B, P)."""
    pixel_map = _integer(name, value)
    if pixel_map.ndim != 2:
        fix = f"for a map with more dimensions pass {name}.flatten(1)"
        refuse(name, "2 dimensions, (B, P)", shape_of(pixel_map), fix)


def check_largest_label(
    labels: Tensor, ignore_index: int, limit: int, expected: str, fix: str = ""
) -> None:
    """Accept labels up to `limit` and `ignore_index`. Reads values: waits for a GPU."""
    if labels.numel() == 0 or int(labels.max()) <= limit:
        return
    wide = labels.to(torch.int64)
    beyond = wide[(wide > limit) & (wide != ignore_index)]
    if beyond.numel() > 0:
        refuse("labels", expected, str(int(beyond.max())), fix)


def values_can_be_seen(tensor: Tensor) -> bool:
    """Return whether the tensor has values that the host can read without a wait."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not isinstance(tensor, FakeTensor)
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def short_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_pixel_map(name: str, value: Tensor, emb: Tensor) -> None:
    """Accept (B, *S_any) for an embedding (B, D, *S), and (N,) for points (N, D)."""
    if value.ndim == emb.ndim and value.shape[1] == 1:
        refuse(name, _map_shape(emb), shape_of(value), f"the fix is {name}.squeeze(1)")
    if value.ndim != emb.ndim - 1:
        refuse(name, f"{_map_shape(emb)} for emb {shape_of(emb)}", shape_of(value))
    if value.shape[0] != emb.shape[0]:
        unit = "points" if emb.ndim == 2 else "images"
        expected = f"the same number of {unit} as emb, {emb.shape[0]}"
        refuse(name, expected, f"{value.shape[0]} (shape {shape_of(value)})")
    if value.numel() == 0 and emb.numel() > 0:
        refuse(name, "at least one pixel per image", shape_of(value))
    check_same_device(name, value, "emb", emb)


def _map_shape(emb: Tensor) -> str:
    return "(N,)" if emb.ndim == 2 else "(B, " + ", ".join("DHW"[5 - emb.ndim :]) + ")"


def _check_weight_values(name: str, weight: Tensor) -> None:
    """Accept finite weights of at least 0. Values are read on the CPU only, without a wait."""
    if weight.numel() == 0 or not values_can_be_seen(weight):
        return
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        values = f"values from {float(weight.detach().min())} to {float(weight.detach().max())}"
        refuse(name, "finite weights of at least 0", values)


def _floating(name: str, value: object) -> Tensor:
    return _typed(name, value, FLOATING, "a floating")


def _integer(name: str, value: object) -> Tensor:
    return _typed(name, value, INTEGER, "an integer")


def _real(name: str, value: object) -> Tensor:
    return _typed(name, value, FLOATING + INTEGER, "a floating or integer")


def _typed(name: str, value: Any, dtypes: Sequence[torch.dtype], kind: str) -> Tensor:
    if not isinstance(value, Tensor):
        refuse(name, f"{kind} tensor", kind_of(value), error=TypeError)
    if value.dtype not in dtypes:
        names = ", ".join(map(short_dtype, dtypes))
        refuse(name, f"{kind} tensor ({names})", short_dtype(value.dtype), error=TypeError)
    _check_strided(name, value)
    return value


def _check_strided(name: str, value: Tensor) -> None:
    """Refuse sparse and nested tensors, which lack most operations."""
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        refuse(name, "a dense tensor", f"the layout {layout}", error=TypeError)
