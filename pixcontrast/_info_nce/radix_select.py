"""Floating numbers as integers of the same order and size, which can be found digit by digit."""

from __future__ import annotations

import torch
from torch import Tensor

DIGIT_BITS = 4


def image_of(numbers: Tensor) -> Tensor:
    """int32 of float32, int64 of float64; zero of either sign is one number."""
    dtype = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    return _turned((numbers + 0.0).view(dtype))


def number_of(image: Tensor) -> Tensor:
    """What `image_of` was made of: float32 of int32, float64 of int64."""
    dtype = torch.float64 if image.dtype == torch.int64 else torch.float32
    return _turned(image).view(dtype)


def _turned(bits: Tensor) -> Tensor:
    """Negative numbers have the order of their sizes, and negative integers the other one."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
