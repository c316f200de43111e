"""Checks of options: numbers, names and flags."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_LONGEST = 200
"""Characters of a value in a message: an array or a module may have thousands."""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    # Compared as text alone: an array would compare element by element.
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {expected}; got {shown(value)}")


def check_count(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int; got {kind_of(value)}")
    if value < at_least:
        raise ValueError(f"{name}: expected at least {at_least}; got {shown(value)}")
    if value >= 1 << 63:
        raise ValueError(f"{name}: expected a 64-bit integer; got {shown(value)}")


def check_addressable(names: str, sizes: Sequence[int], dtype: torch.dtype) -> None:
    """A tensor of these sizes has less than 2 ** 63 bytes; whether they are there is not asked."""
    if math.prod(sizes) * dtype.itemsize >= 1 << 63:
        found = " × ".join(map(str, sizes))
        raise ValueError(
            f"{names}: expected a tensor of less than 2**63 bytes; got {found} numbers"
        )


def check_fraction(name: str, value: object, *, above_zero: bool = False) -> None:
    number = _real(name, value)
    in_range = 0 < number <= 1 if above_zero else 0 <= number <= 1
    if not in_range:
        expected = "in (0, 1]" if above_zero else "in [0, 1]"
        raise ValueError(f"{name}: expected a number {expected}; got {shown(value)}")


def check_temperature(name: str, value: object) -> None:
    number = _real(name, value)
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{name}: expected a finite number above 0; got {shown(value)}")


def check_factor(temperature: float, base_temperature: float) -> None:
    """What a loss is multiplied by stays finite in float32: 0 · inf would be NaN."""
    if not temperature / base_temperature <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"base_temperature: expected temperature / base_temperature to be a float32; got "
            f"{temperature} / {base_temperature}"
        )


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {kind_of(value)}")


def check_floating_dtype(name: str, value: object) -> None:
    if not isinstance(value, torch.dtype) or value not in FLOATING:
        expected = ", ".join(str(dtype) for dtype in FLOATING)
        raise TypeError(f"{name}: expected one of {expected}; got {shown(value)}")


def check_ignore_index(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"ignore_index: expected an int; got {kind_of(value)}")
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"ignore_index: expected a 64-bit integer; got {shown(value)}")


def check_ignored_is_no_class(ignore_index: int, num_classes: int) -> None:
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index: expected a label that is no class, negative or at least num_classes "
            f"= {num_classes}; got {ignore_index}, which would silently take that class out"
        )


def check_callable(name: str, value: object) -> None:
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise TypeError(
            f"{name}: expected a callable object such as HardAnchorSampler(...), or None; got "
            f"{kind_of(value)}"
        )


def check_contrast(value: Any, choices: Sequence[str]) -> None:
    """A tuple of different choices, at least one."""
    expected = "expected a tuple out of " + ", ".join(repr(choice) for choice in choices)
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_sequence or not all(isinstance(name, str) for name in value):
        is_choice = isinstance(value, str) and value in choices
        fix = f" (the fix is ({value!r},))" if is_choice else ""
        raise TypeError(f"contrast: {expected}; got {kind_of(value)}{fix}")
    if not value or len(set(value)) != len(value) or not set(value) <= set(choices):
        raise ValueError(f"contrast: {expected}, each at most once; got {shown(value)}")


def check_queue_is_there(queue: str, slots: int | None) -> None:
    """`slots` of the bank's queue; None where there is no bank."""
    if slots is None:
        raise ValueError(
            f"contrast: {queue!r} is a queue of a bank, and no bank was given (pass "
            f"bank=MemoryBank(...), or leave {queue!r} out)"
        )
    if slots == 0:
        raise ValueError(
            f"contrast: {queue!r} asked for, but the bank was built without that queue (give it "
            f"slots, or leave {queue!r} out)"
        )


def check_instance(name: str, value: object, kind: type, *, or_none: bool = True) -> None:
    if not (isinstance(value, kind) or (or_none and value is None)):
        expected = f"a {kind.__name__}" + (" or None" if or_none else "")
        raise TypeError(f"{name}: expected {expected}; got {kind_of(value)}")


def check_process_group(value: object) -> None:
    if value is None:
        return
    there = distributed.is_available()
    # What new_group gives to a process that is not in the group: a number.
    if there and isinstance(value, int) and value == distributed.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group: expected a group that this process is part of; got one that it is not "
            "(give each rank the group that it belongs to)"
        )
    if not (there and isinstance(value, distributed.ProcessGroup)):
        raise TypeError(
            f"process_group: expected a process group of torch.distributed, or None for the whole "
            f"world; got {kind_of(value)}"
        )


def _real(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number; got {kind_of(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name}: expected a number that a float can hold; got {shown(value)}"
        ) from None


def kind_of(value: object) -> str:
    name = type(value).__name__
    return "a tensor" if isinstance(value, Tensor) else f"{name} {shown(value)}"


def shown(value: object) -> str:
    """What came, as it is read in a message: short, and whatever it is."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, an object that cannot be shown
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
