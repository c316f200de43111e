"""Validation of arguments, once, before any work is done.

Every message has the form "name: expected ...; got ... (fix)". A check returns the accepted value.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
DTYPES = {
    "a floating": FLOATING,
    "an integer": SIGNED + UNSIGNED,
    "an index": (torch.int32, torch.int64),
    "an integer or bool": (*SIGNED, *UNSIGNED, torch.bool),
    "a floating, integer or bool": (*FLOATING, *SIGNED, *UNSIGNED, torch.bool),
}
# These dtypes lack most operations. A number above 2 ** 63 becomes negative.
CONVERTED = {torch.bool: torch.uint8, torch.uint16: torch.int32}
CONVERTED |= {torch.uint32: torch.int64, torch.uint64: torch.int64}

_MAX_LENGTH = 200
"""Largest number of characters of a value in a message: an array may have thousands."""

T = TypeVar("T")


def expect(
    ok: bool,
    name: str,
    expected: str,
    got: object,
    fix: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error unless `ok`. It shows the value `got`, a TypeError also the type."""
    if not ok:
        refuse(name, expected, kind_of(got) if error is TypeError else shown(got), fix, error)


def refuse(
    name: str, expected: str, got: object, fix: str = "", error: type[Exception] = ValueError
) -> NoReturn:
    """Raise an error. Unlike in `expect`, `got` is a shape or a description of the argument."""
    got = shown(got) if isinstance(got, torch.Size) else got
    raise error(f"{name}: expected {expected}; got {got}" + (f" ({fix})" if fix else ""))


def kind_of(value: object) -> str:
    """Describe a value by its type, and its shape or length, or else its value."""
    name, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(shape, tuple) and len(shape) > 0:
        return f"{name} of shape {shape}"
    if shape is None and isinstance(value, Collection) and not isinstance(value, str):
        return f"{name} of length {len(value)}"
    return f"{name} {shown(value)}"


def shown(value: object) -> str:
    """Return the representation of any value, shortened if it is long."""
    try:
        text = repr(tuple(value) if isinstance(value, torch.Size) else value)
    except Exception:  # for example an integer with too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def check_choice(name: str, value: T, choices: Sequence[str]) -> T:
    # Compare strings only: an array would compare element by element.
    if not isinstance(value, str) or value not in choices:
        refuse(name, "one of " + ", ".join(map(repr, choices)), shown(value))
    return value


def check_flag(name: str, value: bool) -> bool:
    expect(isinstance(value, bool), name, "True or False", value, error=TypeError)
    return value


def check_integer(name: str, value: object, at_least: int = -(1 << 63)) -> int:
    """Accept an integer of Python or numpy, and return it as an int."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        refuse(name, "an int", kind_of(value), error=TypeError)
    number = int(value)
    expect(-(1 << 63) <= number < 1 << 63, name, "a 64-bit integer", value)
    expect(number >= at_least, name, f"at least {at_least}", value)
    return number


def check_ignore_index(value: object) -> int:
    fix = "to ignore negative labels only, pass -1"
    expect(value is not None, "ignore_index", "an int", value, fix, TypeError)
    return check_integer("ignore_index", value)


def check_fraction(name: str, value: object, *, above_zero: bool = False) -> float:
    number = _real(name, value)
    expected = "a number in (0, 1]" if above_zero else "a number in [0, 1]"
    expect(0 <= number <= 1 and not (above_zero and number == 0), name, expected, value)
    return number


def check_temperature(name: str, value: object) -> float:
    number = _real(name, value)
    expect(number > 0 and math.isfinite(number), name, "a finite number above 0", value)
    return number


def _real(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        refuse(name, "a number", kind_of(value), error=TypeError)
    try:
        return float(value)
    except OverflowError:
        refuse(name, "a number that a float can hold", shown(value))


def check_instance(name: str, value: T, kind: type) -> T:
    """Accept an object of this type, or None."""
    if not (value is None or isinstance(value, kind)):
        refuse(name, f"a {kind.__name__} or None", kind_of(value), error=TypeError)
    return value


def check_addressable(names: str, sizes: Sequence[int], dtype: torch.dtype) -> None:
    """Check that a tensor of these sizes has less than 2 ** 63 bytes."""
    if math.prod(sizes) * dtype.itemsize >= 1 << 63:
        found = " × ".join(map(str, sizes))
        refuse(names, "a tensor of less than 2**63 bytes", f"{found} elements")


def check_tensor(name: str, value: Any, kind: str, fix: str = "") -> Tensor:
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


def check_vectors(name: str, value: object) -> Tensor:
    """Accept a floating point tensor of shape (rows, D) with D at least 1."""
    vectors = check_tensor(name, value, "a floating")
    expect(vectors.ndim == 2, name, "2 dimensions, (rows, D)", vectors.shape)
    expect(vectors.shape[1] >= 1, name, "D of at least 1", vectors.shape)
    return vectors


def check_vector_labels(name: str, value: object, vectors_name: str, vectors: Tensor) -> Tensor:
    """Accept integers of shape (rows,) for vectors of shape (rows, D)."""
    labels = check_tensor(name, value, "an integer")
    return _one_for_each(
        name, labels, f"label for each row of {vectors_name}", vectors_name, vectors
    )


def check_anchor_weight(name: str, value: object, anchors: Tensor) -> Tensor:
    """Accept weights of shape (M,) for anchors of shape (M, D)."""
    weight = check_tensor(name, value, "a floating, integer or bool")
    return check_weights(
        name, _one_for_each(name, weight, "weight for each anchor", "anchors", anchors)
    )


def check_weights(name: str, weight: Tensor) -> Tensor:
    """Accept finite weights of at least 0. Values are read on the CPU only, without a wait."""
    if weight.numel() == 0 or not values_can_be_seen(weight):
        return weight
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        values = f"values from {float(weight.detach().min())} to {float(weight.detach().max())}"
        refuse(name, "finite weights of at least 0", values)
    return weight


def _one_for_each(name: str, value: Tensor, one: str, rows_name: str, rows: Tensor) -> Tensor:
    if value.shape != rows.shape[:1]:
        refuse(name, f"shape ({rows.shape[0]},), one {one}", value.shape)
    check_same_device(name, value, rows_name, rows)
    return value


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


def check_projected(value: object, rows: Tensor) -> Tensor:
    """Accept embeddings (n, D) of feature rows (n, C)."""
    name = "the output of projection"
    embeddings = check_vectors(name, value)
    expected = f"{rows.shape[0]} rows, one for each row of its input"
    expect(embeddings.shape[0] == rows.shape[0], name, expected, embeddings.shape)
    check_same_device(name, embeddings, "emb", rows)
    return embeddings


def check_sampler_map(name: str, value: object) -> Tensor:
    """Accept an integer tensor of shape (B, P)."""
    pixel_map = check_tensor(name, value, "an integer or bool")
    fix = f"for a map with more dimensions pass {name}.flatten(1)"
    expect(pixel_map.ndim == 2, name, "2 dimensions, (B, P)", pixel_map.shape, fix)
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
