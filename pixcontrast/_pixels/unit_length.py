"""Scale embeddings to unit length, without overflow or underflow of their squares."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast import _check as check

SMALLEST = 1e-30
"""A vector whose components are all at most this large counts as zero: the gradient of its unit
vector would overflow float32."""

# If the sum of squares of a vector is larger than this and finite, its float32 square root is
# accurate, and the largest component is larger than `SMALLEST`.
_SAFE_SQUARES = 1e-20


def unit_length(vectors: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors to unit length. A zero vector stays zero, with zero gradient.

    Computed in at least float32, returned in the dtype of `vectors`. The largest component is
    divided out first, so that squares do not overflow or underflow. It is treated as a constant:
    neither the result nor its derivative depends on it.
    """
    wide = vectors.to(at_least_float32(vectors))
    largest = largest_component(wide.detach(), dim)
    # Dividing by infinity makes a zero vector and its gradient zero.
    scaled = wide / largest.masked_fill(largest <= SMALLEST, torch.inf)
    # The largest component of a nonzero vector is now 1, so its norm is at least 1.
    norm = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    unit: Tensor = scaled / norm.clamp(min=1.0)
    return unit.to(vectors.dtype)


def unit_factors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors and factors whose product has unit length, without a gradient.

    Args:
        vectors (Tensor): embeddings, shape (b, D, p).

    Returns:
        Finite vectors (b, D, p) and factors (b, p), in at least float32. The factor is 0 if the
        embedding is zero or not finite.
    """
    vectors = vectors.to(at_least_float32(vectors))
    if check.values_can_be_seen(vectors):
        squares = sum_of_squares(vectors, dim=1)
        if bool(((squares > _SAFE_SQUARES) & (squares < torch.inf)).all()):
            return vectors, squares.rsqrt().squeeze(1)
    # Once the largest component is 1, squares and their sum do not overflow or underflow.
    largest = largest_component(vectors, dim=1)
    usable = torch.isfinite(largest) & (largest > SMALLEST)
    scaled = (vectors / torch.where(usable, largest, 1.0)).nan_to_num_(0.0, 0.0, 0.0)
    factor = sum_of_squares(scaled, dim=1).clamp(min=1.0).rsqrt() * usable
    return scaled, factor.squeeze(1)


def largest_component(vectors: Tensor, dim: int) -> Tensor:
    """Return max |x| over `dim`, with size 1. It is NaN or infinite if a component is."""
    if vectors.device.type == "cpu":
        # On the CPU a norm over a strided dimension takes eight times as long.
        return vectors.abs().amax(dim=dim, keepdim=True)
    largest: Tensor = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=dim, keepdim=True)
    return largest


def sum_of_squares(vectors: Tensor, dim: int) -> Tensor:
    """Return Σ x² over `dim`, with size 1."""
    if vectors.device.type == "cpu":
        return vectors.square().sum(dim=dim, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return norm.square()


def at_least_float32(vectors: Tensor) -> torch.dtype:
    """Return float32, or float64 for float64 vectors."""
    return torch.promote_types(vectors.dtype, torch.float32)
