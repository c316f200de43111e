"""What autocast asks for, and places it must not reach."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def product_dtype(vectors: Tensor) -> torch.dtype:
    """The dtype of the vectors, or autocast's where autocast would convert their product."""
    if product_is_cast(vectors):
        return torch.get_autocast_dtype(vectors.device.type)
    return vectors.dtype


def product_is_cast(vectors: Tensor) -> bool:
    """Whether autocast would convert these vectors where they are multiplied."""
    device = vectors.device.type
    casts = _is_available(device) and torch.is_autocast_enabled(device)
    return casts and vectors.dtype != torch.float64


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A region whose dtypes are those that are written down."""
    if _is_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _is_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# A constant to torch.compile, which in PyTorch 2.7 cannot trace it. Set by hand as in `backends`.
_is_available._dynamo_marked_constant = True  # type: ignore[attr-defined]
