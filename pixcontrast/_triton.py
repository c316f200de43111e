"""Which backend runs a call, and why the fused kernels cannot run if they cannot.

There are two kinds of reasons. A limit: the kernels do not support these anchors or this device;
`"auto"` then uses the tiled form silently. A fault: the kernels support them, but Triton is missing
or broken; `"auto"` then uses the tiled form and warns once. `backend="triton"` raises for both.
"""

from __future__ import annotations

import functools
import importlib
import os
import textwrap
import threading
import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pixcontrast._check import short_dtype
from pixcontrast._launch import LAUNCH_OPTIONS

Backend = Literal["dense", "tiled", "triton", "auto"]
Form = Literal["dense", "tiled", "triton"]

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIM = 512
MIN_CAPABILITY = (8, 0)

_lock = threading.Lock()
_warned: set[str] = set()
_launch_failures: dict[int, str | None] = {}
_ready: set[torch.device] = set()


def choose(backend: Backend, anchors: Tensor) -> Form:
    """Return the form of the equation to run.

    If `backend="triton"` does not support the anchors, raise a ValueError; if it cannot run on
    their device, a RuntimeError.
    """
    kind, index = anchors.device.type, anchors.device.index
    if backend == "auto":
        supported = limit_of_anchors(anchors) is None
        return "triton" if supported and auto_takes_fused(kind, index) else "tiled"
    reason = why_not_fused(anchors) if backend == "triton" else None
    if reason is not None:
        error = RuntimeError if limit_of_anchors(anchors) is None else ValueError
        raise error(_refusal(reason))
    return backend


def why_not_fused(anchors: Tensor) -> str | None:
    """Return why the fused kernels cannot take these anchors, or None if they can."""
    limit = limit_of_anchors(anchors)
    return why_not_on(anchors.device.type, anchors.device.index) if limit is None else limit


def check_triton_imports() -> None:
    """Raise a RuntimeError if Triton cannot be imported: the check that needs no anchors."""
    failure = import_failure()
    if failure is not None:
        raise RuntimeError(_refusal(failure))


def limit_of_anchors(anchors: Tensor) -> str | None:
    """Return why the kernels do not support the dtype or the width of the anchors, or None."""
    if anchors.dtype not in FUSED_DTYPES:
        expected = ", ".join(short_dtype(dtype) for dtype in FUSED_DTYPES)
        return f"it takes anchors of {expected}; got {short_dtype(anchors.dtype)}"
    if anchors.shape[1] > MAX_DIM:
        return f"it takes anchors of D up to {MAX_DIM}; got D = {anchors.shape[1]}"
    return None


def why_not_on(kind: str, index: int | None) -> str | None:
    """Return why the fused kernels cannot run on a device, or None if they can."""
    reason = import_failure() or limit_of_device(kind, index)
    # On the CPU the kernels are interpreted, so there is nothing to compile.
    return launch_failure(index) if reason is None and kind == "cuda" else reason


def auto_takes_fused(kind: str, index: int | None) -> bool:
    """Return whether `"auto"` uses the kernels on a device. Warns once of each fault."""
    # Without a GPU, Triton is not imported: the import takes time.
    if kind != "cuda" or limit_of_device(kind, index) is not None:
        return False
    fault = import_failure()
    if fault is None and interpreted():
        return False  # the interpreter is for tests, and much slower than the tiled form
    fault = fault or launch_failure(index)
    if fault is None:
        return True
    with _lock:
        is_new = fault not in _warned
        _warned.add(fault)
    if is_new:
        warnings.warn(
            f'backend="auto" takes "tiled", because the faster "triton" cannot run here: {fault}',
            RuntimeWarning,
            stacklevel=4,
        )
    return False


def takes_kernels(tensor: Tensor) -> bool:
    """Return whether kernels replace sequences of small operations on the device of a tensor.

    Only in eager code: torch.compile fuses the operations, and a transform has to see them.
    """
    if not is_eager(tensor):
        return False
    device = tensor.device
    if device not in _ready:  # asked several times in a step
        if not auto_takes_fused(device.type, device.index):
            return False
        if device.type == "cuda":
            _ready.add(device)
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return not transformed and forward_ad._current_level < 0


def is_eager(tensor: Tensor) -> bool:
    """Return whether the code is neither compiled nor traced, and the tensor has values."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return type(tensor) is Tensor  # not a tensor without values


# What a device supports does not change while a program runs, so torch.compile takes the result as
# a constant: it could not trace these functions. Set the attribute directly, because
# torch.compiler.assume_constant_result would import the compiler, and Triton with it.
why_not_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
auto_takes_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]


def limit_of_device(kind: str, index: int | None) -> str | None:
    """Return why the kernels do not support a device, or None if they do."""
    if kind == "cpu" and interpreted():
        return None
    if kind != "cuda" or torch.version.hip is not None:
        found = "an AMD GPU" if kind == "cuda" else kind
        return f"it needs a CUDA device, or the CPU under TRITON_INTERPRET=1; got {found}"
    found_capability = capability(index)
    if found_capability is None:
        return "it needs a CUDA device, and there is none of this index"
    if found_capability < MIN_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (MIN_CAPABILITY, found_capability))
        return f"it needs compute capability {least} or newer; got {found}"
    return None


def capability(index: int | None) -> tuple[int, int] | None:
    """Return the compute capability of a CUDA device, or None if there is no such device."""
    exists = (index or 0) < torch.cuda.device_count()
    return torch.cuda.get_device_capability(index) if exists else None


@functools.cache
def import_failure() -> str | None:
    """Import Triton. Return why that failed, or None."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken installation can raise anything
        return f"Triton cannot be imported ({in_one_line(error)})"
    return None


def interpreted() -> bool:
    """Return whether TRITON_INTERPRET is set, as Triton reads it."""
    if import_failure() is not None:
        return False
    triton: Any = importlib.import_module("triton")
    if hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton 3.3


# Those of Triton are functions of its language too, and take 4 µs a call.
def ceil_div(numerator: int, denominator: int) -> int:
    """Return the quotient, rounded up."""
    return -(-numerator // denominator)


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least `number`, which is above 0."""
    return 1 << (number - 1).bit_length()


def launch_failure(index: int | None) -> str | None:
    """Launch a small kernel on a CUDA device, once. Return why that failed, or None.

    Triton can often be imported and yet not compile or launch a kernel: that needs a C compiler
    and a recent driver.
    """
    index = index or 0
    with _lock:
        if index not in _launch_failures:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return None  # a CUDA graph would record the launch: try again in the next call
            _launch_failures[index] = None
            try:
                _launch_probe(index)
            except Exception as error:  # of the compiler, the driver, or Triton
                if "out of memory" not in str(error):  # that says nothing about Triton
                    failure = f"a first small kernel on cuda:{index} failed ({in_one_line(error)})"
                    _launch_failures[index] = failure
        return _launch_failures[index]


def _launch_probe(index: int) -> None:
    # The argument is not a tensor, so the caller's grad mode, fake tensors and transforms do not
    # matter. It is not 1, which Triton would compile as a constant.
    with torch.cuda.device(index):
        probe_kernel()[(1,)](2, **LAUNCH_OPTIONS)


@functools.cache
def probe_kernel() -> Any:
    """Return a kernel of one line, to test whether Triton can compile and launch it."""
    return importlib.import_module("triton").jit(_add_one)


def _add_one(number: int) -> None:
    number = number + 1


def in_one_line(error: Exception) -> str:
    """Return the type and the message of an error, shortened to one line."""
    message = textwrap.shorten(str(error), width=300, placeholder=" ...")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _refusal(reason: str) -> str:
    return (
        f'backend: "triton" cannot run here: {reason} (use "auto", which takes the fastest that '
        f'can, or "tiled")'
    )
