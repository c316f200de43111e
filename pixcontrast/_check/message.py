"""The form of every error message."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

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
    """Raise an error unless `ok`.

    Args:
        ok (bool): whether the argument is valid.
        name (str): name of the argument.
        expected (str): what is valid.
        got (object): what the caller passed. A TypeError also shows its type.
        fix (str): what the caller can do. Default: "", no advice.
        error (type): type of the error. Default: ValueError.
    """
    if not ok:
        refuse(name, expected, kind_of(got) if error is TypeError else shown(got), fix, error)


def refuse(
    name: str, expected: str, got: object, fix: str = "", error: type[Exception] = ValueError
) -> NoReturn:
    """Raise an error. Unlike in `expect`, `got` is a description of what the caller passed."""
    raise error(f"{name}: expected {expected}; got {got}" + (f" ({fix})" if fix else ""))


def kind_of(value: object) -> str:
    """Return type and value, or "a tensor"."""
    return "a tensor" if isinstance(value, Tensor) else f"{type(value).__name__} {shown(value)}"


def shown(value: object) -> str:
    """Return the representation of any value, shortened if it is long."""
    try:
        text = repr(value)
    except Exception:  # for example an integer with too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
