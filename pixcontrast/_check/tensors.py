"""Checks of tensors: dtype, shape, device and range of values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pixcontrast._check.options import FLOATING, check_instance, expect, kind_of, refuse

SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
DTYPES = {
    "a floating": FLOATING,
    "an integer": SIGNED + UNSIGNED,
    "an integer or bool": (*SIGNED, *UNSIGNED, torch.bool),
    "a floating, integer or bool": (*FLOATING, *SIGNED, *UNSIGNED, torch.bool),
}
# These dtypes lack most operations. A number above 2 ** 63 becomes negative.
CONVERTED = {torch.bool: torch.uint8, torch.uint16: torch.int32}
CONVERTED |= {torch.uint32: torch.int64, torch.uint64: torch.int64}


def check_vectors(name: str, value: object) -> Tensor:
    """Accept a floating point tensor of shape (rows, D) with D at least 1."""
    vectors = _typed(name, value, "a floating")
    expect(vectors.ndim == 2, name, "2 dimensions, (rows, D)", shape_of(vectors))
    expect(vectors.shape[1] >= 1, name, "D of at least 1", shape_of(vectors))
    return vectors


def check_vector_labels(name: str, value: object, vectors_name: str, vectors: Tensor) -> Tensor:
    """Accept an integer tensor of shape (rows,) for vectors of shape (rows, D)."""
    labels = _typed(name, value, "an integer")
    if labels.shape != vectors.shape[:1]:
        expected = f"shape ({vectors.shape[0]},), one label for each row of {vectors_name}"
        refuse(name, expected, shape_of(labels))
    check_same_device(name, labels, vectors_name, vectors)
    return labels


def check_anchor_weight(name: str, value: object, anchors: Tensor) -> Tensor:
    """Accept a weight of shape (M,) for anchors of shape (M, D)."""
    weight = _typed(name, value, "a floating, integer or bool")
    if weight.shape != anchors.shape[:1]:
        expected = f"shape ({anchors.shape[0]},), one weight for each anchor"
        refuse(name, expected, shape_of(weight))
    check_same_device(name, weight, "anchors", anchors)
    _check_weight_values(name, weight)
    return weight


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
) -> Tensor:
    """Accept a floating point tensor of shape (B, channels, *S) or (N, channels).

    `channels` names the dimension in messages; `num_channels` is its size, or None for any but 0.
    """
    features = _typed(name, value, "a floating")
    valid = num_channels is None or (features.ndim > 1 and features.shape[1] == num_channels)
    expected = f"(B, {channels}, *S) with 1 to 3 spatial dimensions, or (N, {channels})"
    expect(valid and 2 <= features.ndim <= 5, name, expected, shape_of(features))
    expect(features.shape[1] >= 1, name, f"{channels} of at least 1", shape_of(features))
    return features


def check_projected(value: object, rows: Tensor) -> Tensor:
    """Accept embeddings (n, D) of feature rows (n, C)."""
    name = "the output of projection"
    embeddings = check_vectors(name, value)
    expected = f"{rows.shape[0]} rows, one for each row of its input"
    expect(embeddings.shape[0] == rows.shape[0], name, expected, shape_of(embeddings))
    check_same_device(name, embeddings, "emb", rows)
    return embeddings


def check_labels(value: object, emb: Tensor) -> Tensor:
    """Accept labels (B, *S_any) or (B, 1, *S_any), and return them as (B, *S_any)."""
    is_one_hot = isinstance(value, Tensor) and value.ndim == emb.ndim and value.shape[1] > 1
    fix = "the fix is labels.argmax(1)" if is_one_hot else ""
    labels = _pixel_map("labels", _typed("labels", value, "an integer or bool", fix), emb)
    size = labels.shape[1:]
    if emb.ndim > 2 and size == emb.shape[1:-1] and size != emb.shape[2:]:
        got = f"{shape_of(emb)}, which fits labels {shape_of(labels)} with channels last"
        refuse("emb", "(B, D, *S), channels first", got, "the fix is emb.movedim(-1, 1)")
    return labels


def check_pixel_weight(value: object, emb: Tensor) -> Tensor:
    """Accept weights (B, *S_any) or (B, 1, *S_any), and return them as (B, *S_any)."""
    weight = _pixel_map("weight", _typed("weight", value, "a floating, integer or bool"), emb)
    _check_weight_values("weight", weight)
    return weight


def check_predictions(value: object, emb: Tensor) -> Tensor:
    """Accept classes (B, *S_any) or (B, 1, *S_any), or logits (B, C, *S_any), C at least 2.

    Return classes (B, *S_any), or the logits.
    """
    preds = _typed("preds", value, "a floating, integer or bool")
    if not preds.is_floating_point():
        return _pixel_map("preds", preds, emb)
    if preds.ndim != emb.ndim:
        expected = f"integer classes {_map_shape(emb)} or floating logits with a class dimension"
        got = f"{preds.dtype} of shape {shape_of(preds)}"
        fix = "for the probability of one class pass preds > 0.5"
        refuse("preds", f"{expected} after the first", got, fix, TypeError)
    fix = "argmax over one class is always 0; for one logit per pixel pass "
    fix += "(logit > 0).long().squeeze(1)"
    expect(preds.shape[1] >= 2, "preds", "logits of at least 2 classes", shape_of(preds), fix)
    _pixel_map("preds", preds.select(1, 0), emb)
    return preds


def check_sampler_map(name: str, value: object) -> Tensor:
    """Accept an integer tensor of shape (B, P)."""
    pixel_map = _typed(name, value, "an integer or bool")
    fix = f"for a map with more dimensions pass {name}.flatten(1)"
    expect(pixel_map.ndim == 2, name, "2 dimensions, (B, P)", shape_of(pixel_map), fix)
    return pixel_map


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


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without its subclass, such as MONAI's MetaTensor or torchvision's Mask.

    A subclass that implements operators itself, such as FakeTensor, is returned unchanged.
    """
    kind = type(tensor)
    if kind is Tensor or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    with torch._C.DisableTorchFunctionSubclass():  # torch.compile cannot trace as_subclass
        same: Tensor = tensor.view(tensor.shape)
        return same


def _pixel_map(name: str, value: Tensor, emb: Tensor) -> Tensor:
    """Accept (B, *S_any) for an embedding (B, D, *S), and (N,) for points (N, D).

    A channel dimension of one is removed.
    """
    if value.ndim == emb.ndim and value.shape[1] == 1:
        value = value.squeeze(1)
    if value.ndim != emb.ndim - 1:
        fix = f"for one-hot {name} pass {name}.argmax(1)" if value.ndim == emb.ndim else ""
        refuse(name, f"{_map_shape(emb)} for emb {shape_of(emb)}", shape_of(value), fix)
    if value.shape[0] != emb.shape[0]:
        unit = "points" if emb.ndim == 2 else "images"
        expected = f"the same number of {unit} as emb, {emb.shape[0]}"
        refuse(name, expected, f"{value.shape[0]} (shape {shape_of(value)})")
    is_missing = value.numel() == 0 and emb.numel() > 0
    expect(not is_missing, name, "at least one pixel per image", shape_of(value))
    check_same_device(name, value, "emb", emb)
    return value


def _map_shape(emb: Tensor) -> str:
    return "(N,)" if emb.ndim == 2 else "(B, " + ", ".join("DHW"[5 - emb.ndim :]) + ")"


def _check_weight_values(name: str, weight: Tensor) -> None:
    """Accept finite weights of at least 0. Values are read on the CPU only, without a wait."""
    if weight.numel() == 0 or not values_can_be_seen(weight):
        return
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        values = f"values from {float(weight.detach().min())} to {float(weight.detach().max())}"
        refuse(name, "finite weights of at least 0", values)


def _typed(name: str, value: Any, kind: str, fix: str = "") -> Tensor:
    """Accept a dense tensor with a dtype of this kind. Return it without its subclass.

    Dtypes that lack operations are converted. Sparse and nested tensors lack most operations.
    """
    if not isinstance(value, Tensor):
        refuse(name, f"{kind} tensor", kind_of(value), _tensor_of(name, value), TypeError)
    if value.dtype not in DTYPES[kind]:
        names = ", ".join(map(short_dtype, DTYPES[kind]))
        is_class = kind.startswith("an integer") and value.is_floating_point()
        fix = fix or (f"the fix is {name}.long()" if is_class else "")
        refuse(name, f"{kind} tensor ({names})", short_dtype(value.dtype), fix, TypeError)
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        refuse(name, "a dense tensor", f"the layout {layout}", error=TypeError)
    tensor = plain(value)
    return tensor.to(CONVERTED[tensor.dtype]) if tensor.dtype in CONVERTED else tensor


def _tensor_of(name: str, value: object) -> str:
    """Return how the caller gets a tensor from a value of another type."""
    if isinstance(value, Mapping):
        return f"pass one of its tensors, for example {name}['out']"
    if isinstance(value, Sequence) and any(isinstance(element, Tensor) for element in value):
        return "make a call for each of its tensors, and add up the losses"
    is_array = hasattr(value, "__array__") or isinstance(value, list | tuple)
    return f"the fix is torch.as_tensor({name})" if is_array else ""
