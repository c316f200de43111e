"""Which dtype a computation uses: rules of autocast and of the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def product_dtype(vectors: Tensor) -> torch.dtype:
    """Return the dtype in which PyTorch would multiply these vectors, considering autocast."""
    if product_is_cast(vectors):
        return torch.get_autocast_dtype(vectors.device.type)
    return vectors.dtype


def product_is_cast(vectors: Tensor) -> bool:
    """Return whether autocast would convert these vectors before a matrix product."""
    device = vectors.device.type
    enabled = _is_available(device) and torch.is_autocast_enabled(device)
    return enabled and vectors.dtype != torch.float64


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context manager that disables autocast for the type of this device."""
    if _is_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS devices, which do not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _is_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch.compile of PyTorch 2.7 cannot trace this function, so mark its result as a constant.
# Set the attribute directly: torch.compiler.assume_constant_result would import the compiler.
_is_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
