"""Which backend runs a call, and why the fused kernels cannot where they cannot.

Reasons are of two kinds. A limit: the kernels are not made for these anchors or this device;
`"auto"` passes over it in silence. A fault: they are, and Triton is missing or broken; `"auto"`
takes the tiled form and says so, once. Asked for by name, the kernels raise for either.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from pixcontrast._info_nce.trial import in_one_line, launch_failure

Backend = Literal["dense", "tiled", "triton", "auto"]
Form = Literal["dense", "tiled", "triton"]

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_COMPONENTS = 512
LEAST_CAPABILITY = (8, 0)

_lock = threading.Lock()
_warned: set[str] = set()


def choose(backend: Backend, anchors: Tensor) -> Form:
    """The form of the equation to run; raises where one was asked for that cannot run."""
    kind, index = anchors.device.type, anchors.device.index
    if backend == "auto":
        fits = limit_of_anchors(anchors) is None
        return "triton" if fits and auto_takes_fused(kind, index) else "tiled"
    if backend == "triton":
        limit = limit_of_anchors(anchors)
        if limit is not None:
            raise ValueError(_refusal(limit))
        reason = why_not_on(kind, index)
        if reason is not None:
            raise RuntimeError(_refusal(reason))
    return backend


def why_not_fused(anchors: Tensor) -> str | None:
    """Why the fused kernels cannot take these anchors, or None where they can."""
    limit = limit_of_anchors(anchors)
    return why_not_on(anchors.device.type, anchors.device.index) if limit is None else limit


def check_triton_imports() -> None:
    """What can be known of `backend="triton"` before there are anchors."""
    failure = import_failure()
    if failure is not None:
        raise RuntimeError(_refusal(failure))


def limit_of_anchors(anchors: Tensor) -> str | None:
    if anchors.dtype not in FUSED_DTYPES:
        expected = ", ".join(_short(dtype) for dtype in FUSED_DTYPES)
        return f"it takes anchors of {expected}; got {_short(anchors.dtype)}"
    if anchors.shape[1] > MOST_COMPONENTS:
        return f"it takes anchors of D up to {MOST_COMPONENTS}; got D = {anchors.shape[1]}"
    return None


def why_not_on(kind: str, index: int | None) -> str | None:
    """Why the fused kernels cannot run on a device, or None where they can."""
    reason = import_failure() or limit_of_device(kind, index)
    # Interpreted, nothing is compiled that could be too old or missing.
    return launch_failure(index) if reason is None and kind == "cuda" else reason


def auto_takes_fused(kind: str, index: int | None) -> bool:
    """Whether the kernels are made for a device and run there. Warns, once, of a fault."""
    # Nobody without a GPU has to wait for the import of Triton.
    if kind != "cuda" or limit_of_device(kind, index) is not None:
        return False
    fault = import_failure()
    if fault is None and interpreted():
        return False  # the interpreter is for tests; tiled is faster by far
    fault = fault or launch_failure(index)
    if fault is not None:
        _warn_once(fault)
    return fault is None


# What a device can do does not change while a program runs. To torch.compile these answers are
# constants, found while it traces: it could not follow what they look at. This is the mark that
# torch.compiler.assume_constant_result sets, which would import the whole compiler, and Triton.
why_not_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
auto_takes_fused._dynamo_marked_constant = True  # type: ignore[attr-defined]


def limit_of_device(kind: str, index: int | None) -> str | None:
    if kind == "cpu" and interpreted():
        return None
    if kind != "cuda" or torch.version.hip is not None:
        found = "an AMD GPU" if kind == "cuda" else kind
        return f"it needs a CUDA device, or the CPU under TRITON_INTERPRET=1; got {found}"
    found_capability = capability(index)
    if found_capability is None:
        return "it needs a CUDA device, and there is none of this number"
    if found_capability < LEAST_CAPABILITY:
        least, found = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, found_capability))
        return f"it needs compute capability {least} or newer; got {found}"
    return None


def capability(index: int | None) -> tuple[int, int] | None:
    """The compute capability of a CUDA device, or None where there is no such device."""
    there = (index or 0) < torch.cuda.device_count()
    return torch.cuda.get_device_capability(index) if there else None


@functools.cache
def import_failure() -> str | None:
    """Why Triton cannot be imported, or None where it can. Imports it."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported ({in_one_line(error)})"
    return None


def interpreted() -> bool:
    """Whether TRITON_INTERPRET is set, as Triton reads it."""
    if import_failure() is not None:
        return False
    triton: Any = importlib.import_module("triton")
    if hasattr(triton, "knobs"):
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0") == "1"  # Triton 3.3


def _warn_once(fault: str) -> None:
    with _lock:
        if fault in _warned:
            return
        _warned.add(fault)
    warnings.warn(
        f'backend="auto" takes "tiled", since the faster "triton" cannot run here: {fault}',
        RuntimeWarning,
        stacklevel=6,
    )


def _refusal(reason: str) -> str:
    return (
        f'backend: "triton" cannot run here: {reason} (use "auto", which takes the fastest that '
        f'can, or "tiled")'
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
