"""Checks of tensors: dtype, shape, device and range of values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pixcontrast._check.options import FLOATING, check_instance, expect, kind_of, refuse

INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
DTYPES = {
    "a floating": FLOATING,
    "an integer": INTEGER,
    "a floating or integer": FLOATING + INTEGER,
}


def check_vectors(name: str, value: object) -> None:
    """Accept a floating point tensor of shape (rows, D) with D at least 1."""
    vectors = _typed(name, value, "a floating")
    expect(vectors.ndim == 2, name, "2 dimensions, (rows, D)", shape_of(vectors))
    expect(vectors.shape[1] >= 1, name, "D of at least 1", shape_of(vectors))


def check_vector_labels(name: str, value: object, vectors_name: str, vectors: Tensor) -> None:
    """Accept an integer tensor of shape (rows,) for vectors of shape (rows, D)."""
    labels = _typed(name, value, "an integer")
    if labels.shape != vectors.shape[:1]:
        expected = f"shape ({vectors.shape[0]},), one label for each row of {vectors_name}"
        refuse(name, expected, shape_of(labels))
    check_same_device(name, labels, vectors_name, vectors)


def check_anchor_weight(name: str, value: object, anchors: Tensor) -> None:
    """Accept a weight of shape (M,) for anchors of shape (M, D)."""
    weight = _typed(name, value, "a floating or integer")
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

    `channels` names the dimension in messages; `num_channels` is its size, or None for any but 0.
    """
    features = _typed(name, value, "a floating")
    valid = num_channels is None or (features.ndim > 1 and features.shape[1] == num_channels)
    expected = f"(B, {channels}, *S) with 1 to 3 spatial dimensions, or (N, {channels})"
    expect(valid and 2 <= features.ndim <= 5, name, expected, shape_of(features))
    expect(features.shape[1] >= 1, name, f"{channels} of at least 1", shape_of(features))


def check_projected(value: object, rows: Tensor) -> None:
    """Accept embeddings (n, D) of feature rows (n, C)."""
    name = "the output of projection"
    check_vectors(name, value)
    assert isinstance(value, Tensor)
    expected = f"{rows.shape[0]} rows, one for each row of its input"
    expect(value.shape[0] == rows.shape[0], name, expected, shape_of(value))
    check_same_device(name, value, "emb", rows)


def check_labels(value: object, emb: Tensor) -> None:
    _check_pixel_map("labels", _typed("labels", value, "an integer"), emb)


def check_pixel_weight(value: object, emb: Tensor) -> None:
    weight = _typed("weight", value, "a floating or integer")
    _check_pixel_map("weight", weight, emb)
    _check_weight_values("weight", weight)


def check_predictions(value: object, emb: Tensor) -> None:
    """Accept integer classes (B, *S_any) or floating point logits (B, C, *S_any), C at least 2."""
    if not isinstance(value, Tensor):
        refuse("preds", "a tensor or None", kind_of(value), error=TypeError)
    _check_strided("preds", value)
    if not value.is_floating_point():
        _check_pixel_map("preds", _typed("preds", value, "an integer"), emb)
        return
    if value.ndim != emb.ndim:
        expected = f"integer classes {_map_shape(emb)} or floating logits with a class dimension"
        got = f"{value.dtype} of shape {shape_of(value)}"
        refuse("preds", f"{expected} after the first", got, error=TypeError)
    logits = _typed("preds", value, "a floating")
    fix = "argmax over one class is always 0; for one logit per pixel pass "
    fix += "(logit > 0).long().squeeze(1)"
    expect(logits.shape[1] >= 2, "preds", "logits of at least 2 classes", shape_of(value), fix)
    _check_pixel_map("preds", logits.select(1, 0), emb)


def check_sampler_map(name: str, value: object) -> None:
    """Accept an integer tensor of shape (B, P)."""
    pixel_map = _typed(name, value, "an integer")
    fix = f"for a map with more dimensions pass {name}.flatten(1)"
    expect(pixel_map.ndim == 2, name, "2 dimensions, (B, P)", shape_of(pixel_map), fix)


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
    is_missing = value.numel() == 0 and emb.numel() > 0
    expect(not is_missing, name, "at least one pixel per image", shape_of(value))
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


def _typed(name: str, value: Any, kind: str) -> Tensor:
    """Accept a dense tensor with one of the dtypes of this kind."""
    if not isinstance(value, Tensor):
        refuse(name, f"{kind} tensor", kind_of(value), error=TypeError)
    if value.dtype not in DTYPES[kind]:
        names = ", ".join(map(short_dtype, DTYPES[kind]))
        refuse(name, f"{kind} tensor ({names})", short_dtype(value.dtype), error=TypeError)
    _check_strided(name, value)
    return value


def _check_strided(name: str, value: Tensor) -> None:
    """Refuse sparse and nested tensors, which lack most operations."""
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        refuse(name, "a dense tensor", f"the layout {layout}", error=TypeError)
