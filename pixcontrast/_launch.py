"""Launch Triton's kernels, with less work of the host than Triton's own launch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

# The default until Triton 3.9, which warns of a change.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}

_compiled: dict[tuple[Any, ...], Any] = {}


def launch_on(
    tensor: Tensor, kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any
) -> None:
    """Launch a kernel on the device of a tensor. `named` are its constants, and options."""
    names = kernel.arg_names[len(arguments) :]
    constants = [named[name] for name in names]
    options = {name: option for name, option in named.items() if name not in names}
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        variant = tensor.get_device(), *named.items()
        launch(kernel, grid, arguments, constants, variant, **options)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Sequence[Any],
    constants: Sequence[Any],
    variant: Hashable,
    num_warps: int = 4,
    num_stages: int = 3,
    maxnreg: int | None = None,
    **options: Any,
) -> None:
    """Launch a kernel on the current device.

    Triton takes 12 µs to find the compiled kernel for a launch. A kernel that it has returned
    before is launched directly if everything that Triton compiles for is equal. Options that are
    set after that for all kernels, such as TRITON_DEBUG, have no effect on it.

    Args:
        arguments: the first arguments: tensors, numbers, None, and named tuples of these.
        constants: the arguments after them, all compile-time constants.
        variant: identifies the constants, the options and the device.
        options: further options of Triton.
    """
    kinds = [kernel.fn, variant]
    aligned = _append_kinds(kinds, arguments) % 16 == 0
    key = tuple(kinds)
    compiled = _compiled.get(key) if aligned else None
    if compiled is not None:
        compiled[(*grid, 1, 1)[:3]](*arguments, *constants)
        return
    options = {**LAUNCH_OPTIONS, "num_warps": num_warps, "num_stages": num_stages, **options}
    if maxnreg is not None:
        options["maxnreg"] = maxnreg
    compiled = kernel[grid](*arguments, *constants, **options)
    # The interpreter returns None, as Triton does if a hook prevents the launch.
    if aligned and hasattr(type(compiled), "__getitem__"):
        _compiled[key] = compiled


def _append_kinds(kinds: list[Any], arguments: Sequence[Any]) -> int:
    """Append what Triton compiles for, except alignment. Return all addresses, combined by "or"."""
    addresses = 0
    append = kinds.append
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor:
            append(argument.dtype)
            addresses |= argument.data_ptr()
        elif kind is int and 1 < argument < 1 << 31:
            append(argument % 16 == 0)
        elif kind is int:
            append((argument == 1, argument % 16 == 0, argument.bit_length() // 32))
        elif argument is None or kind is float or kind is bool:
            append(kind)
        elif isinstance(argument, tuple):
            append(kind)
            addresses |= _append_kinds(kinds, argument)
        else:  # a subclass of Tensor
            addresses |= _append_kinds(kinds, [argument.as_subclass(Tensor)])
    return addresses
