"""Rules for tensors: ignored labels, the dtype of a computation, and unit length."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pixcontrast import _check as check

IGNORED = -1
"""The label of every ignored pixel and contrast entry inside the package."""

SMALLEST = 1e-30
"""A vector without a component above this counts as zero, because the gradient of its unit vector
would overflow float32."""

# If the sum of squares of a vector is larger than this and finite, its float32 square root is
# accurate, and the largest component is larger than `SMALLEST`.
_SAFE_SQUARES = 1e-20


def mark_ignored(
    labels: Tensor,
    ignore_index: int,
    num_classes: int | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Convert labels to int64 and replace ignored labels by `IGNORED`, in a new tensor.

    A label is ignored if it is equal to `ignore_index`, negative, or not below `num_classes`, and
    where the weight is 0. Code behind the public functions only compares labels with `IGNORED`.
    """
    # Convert first: uint8 cannot represent IGNORED and cannot be compared with -100.
    wide = labels.to(torch.int64)
    ignored = wide == ignore_index
    if num_classes is not None:
        ignored |= wide >= num_classes
    if weight is not None:
        ignored |= weight == 0
    return wide.clamp(min=IGNORED).masked_fill_(ignored, IGNORED)  # so are all negative labels


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
    if _is_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def at_least_float32(vectors: Tensor) -> torch.dtype:
    """Return float32, or float64 for float64 vectors."""
    return torch.promote_types(vectors.dtype, torch.float32)


def widest_float(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS devices, which do not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _is_available(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch.compile of PyTorch 2.7 cannot trace this function, so mark its result as a constant.
# Set the attribute directly: torch.compiler.assume_constant_result would import the compiler.
_is_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unit_length(vectors: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors to unit length. A zero vector stays zero, with zero gradient.

    Computed in at least float32, returned in the dtype of `vectors`. The largest component is
    divided out first, so that squares do not overflow or underflow. It is treated as a constant:
    neither the result nor its derivative depends on it.
    """
    wide = vectors.to(at_least_float32(vectors))
    largest = _largest_component(wide.detach(), dim)
    # Dividing by infinity makes a zero vector and its gradient zero.
    scaled = wide / largest.masked_fill(largest <= SMALLEST, torch.inf)
    norm = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    # The norm is 0, or at least 1 because the largest component is now 1. The bound is between the
    # two: since PyTorch 2.15 a value equal to its bound has no gradient.
    unit: Tensor = scaled / norm.clamp(min=0.5)
    return unit.to(vectors.dtype)


def unit_factors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return finite vectors (b, D, p) and factors (b, p) whose product has unit length.

    Computed in at least float32, without a gradient. The factor is 0 if the embedding, one of
    `vectors` (b, D, p), is zero or not finite.
    """
    vectors = vectors.to(at_least_float32(vectors))
    if check.values_can_be_seen(vectors):
        squares = _sum_of_squares(vectors)
        if bool(((squares > _SAFE_SQUARES) & (squares < torch.inf)).all()):
            return vectors, squares.rsqrt().squeeze(1)
    # Once the largest component is 1, squares and their sum do not overflow or underflow.
    largest = _largest_component(vectors, dim=1)
    usable = torch.isfinite(largest) & (largest > SMALLEST)
    scaled = (vectors / torch.where(usable, largest, 1.0)).nan_to_num_(0.0, 0.0, 0.0)
    factor = _sum_of_squares(scaled).clamp(min=1.0).rsqrt() * usable
    return scaled, factor.squeeze(1)


def _largest_component(vectors: Tensor, dim: int) -> Tensor:
    """Return max |x| over `dim`, with size 1. It is NaN or infinite if a component is."""
    if vectors.device.type == "cpu":
        # On the CPU a norm over a strided dimension takes eight times as long.
        return vectors.abs().amax(dim=dim, keepdim=True)
    largest: Tensor = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=dim, keepdim=True)
    return largest


def _sum_of_squares(vectors: Tensor) -> Tensor:
    """Return Σ x² over dim 1, with size 1."""
    if vectors.device.type == "cpu":
        return vectors.square().sum(dim=1, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return norm.square()
