"""Checks of options: numbers, strings and flags."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from pixcontrast._check.message import expect, kind_of, refuse, shown

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    # Compare strings only: an array would compare element by element.
    if not isinstance(value, str) or value not in choices:
        refuse(name, "one of " + ", ".join(map(repr, choices)), shown(value))


def check_flag(name: str, value: object) -> None:
    expect(isinstance(value, bool), name, "True or False", value, error=TypeError)


def check_count(name: str, value: object, *, at_least: int) -> None:
    expect(_integer(name, value) >= at_least, name, f"at least {at_least}", value)
    _check_64_bits(name, value)


def check_ignore_index(value: object) -> None:
    _check_64_bits("ignore_index", value)


def check_fraction(name: str, value: object, *, above_zero: bool = False) -> None:
    number = _real(name, value)
    if above_zero:
        expect(0 < number <= 1, name, "a number in (0, 1]", value)
    else:
        expect(0 <= number <= 1, name, "a number in [0, 1]", value)


def check_temperature(name: str, value: object) -> None:
    number = _real(name, value)
    expect(number > 0 and math.isfinite(number), name, "a finite number above 0", value)


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
        refuse(
            "process_group",
            "a group that this process is part of",
            "a group that it is not part of",
            "pass each rank the group that it belongs to",
        )
    if not (available and isinstance(value, distributed.ProcessGroup)):
        expected = "a process group of torch.distributed, or None for the whole world"
        refuse("process_group", expected, kind_of(value), error=TypeError)


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(name, "an int", kind_of(value), error=TypeError)
    return value


def _check_64_bits(name: str, value: object) -> None:
    expect(-(1 << 63) <= _integer(name, value) < 1 << 63, name, "a 64-bit integer", value)


def _real(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        refuse(name, "a number", kind_of(value), error=TypeError)
    try:
        return float(value)
    except OverflowError:
        refuse(name, "a number that a float can hold", shown(value))
