"""Checks of options. Every message has the form "name: expected ...; got ... (fix)"."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, distributed

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_MAX_LENGTH = 200
"""Largest number of characters of a value in a message: an array may have thousands."""


def expect(
    ok: bool,
    name: str,
    expected: str,
    got: object,
    fix: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Raise an error that shows the value `got`, and in a TypeError also its type, unless `ok`."""
    if not ok:
        refuse(name, expected, kind_of(got) if error is TypeError else shown(got), fix, error)


def refuse(
    name: str, expected: str, got: object, fix: str = "", error: type[Exception] = ValueError
) -> NoReturn:
    """Raise an error. Unlike in `expect`, `got` is a description of what the caller passed."""
    raise error(f"{name}: expected {expected}; got {got}" + (f" ({fix})" if fix else ""))


def kind_of(value: object) -> str:
    """Return the type of a value, and its size if it is a collection, or else its value."""
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
        text = repr(value)
    except Exception:  # for example an integer with too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    # Compare strings only: an array would compare element by element.
    if not isinstance(value, str) or value not in choices:
        refuse(name, "one of " + ", ".join(map(repr, choices)), shown(value))


def check_flag(name: str, value: object) -> None:
    expect(isinstance(value, bool), name, "True or False", value, error=TypeError)


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


def check_instance(name: str, value: object, kind: type) -> None:
    """Accept an object of this type, or None."""
    if not (value is None or isinstance(value, kind)):
        refuse(name, f"a {kind.__name__} or None", kind_of(value), error=TypeError)


def check_addressable(names: str, sizes: Sequence[int], dtype: torch.dtype) -> None:
    """Check that a tensor of these sizes has less than 2 ** 63 bytes."""
    if math.prod(sizes) * dtype.itemsize >= 1 << 63:
        sizes_text = " × ".join(map(str, sizes))
        refuse(names, "a tensor of less than 2**63 bytes", f"{sizes_text} elements")


def check_contrast_with(value: Any, choices: Sequence[str]) -> None:
    """Accept a tuple (or another sequence) of distinct choices, at least one."""
    expected = "a tuple out of " + ", ".join(map(repr, choices))
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_sequence or not all(isinstance(name, str) for name in value):
        fix = f"the fix is ({value!r},)" if isinstance(value, str) and value in choices else ""
        refuse("contrast_with", expected, kind_of(value), fix, TypeError)
    valid = 0 < len(value) == len(set(value)) and set(value) <= set(choices)
    expect(valid, "contrast_with", f"{expected}, each at most once", value)


def check_process_group(value: object) -> None:
    if value is None:
        return
    available = distributed.is_available()
    # torch.distributed.new_group returns an integer to processes outside the group.
    if available and isinstance(value, int) and value == distributed.GroupMember.NON_GROUP_MEMBER:
        expected, got = "a group that this process is part of", "a group that it is not part of"
        refuse("process_group", expected, got, "pass each rank the group that it belongs to")
    if not (available and isinstance(value, distributed.ProcessGroup)):
        expected = "a process group of torch.distributed, or None for the whole world"
        refuse("process_group", expected, kind_of(value), error=TypeError)


def _real(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        refuse(name, "a number", kind_of(value), error=TypeError)
    try:
        return float(value)
    except OverflowError:
        refuse(name, "a number that a float can hold", shown(value))
