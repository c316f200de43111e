"""Values for arguments: suitable ones, almost suitable ones, and unrelated objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
LABELS = (*INTEGERS, torch.bool)
OTHERS = (torch.bool, torch.complex64, torch.float8_e4m3fn)
DTYPES = FLOATS + INTEGERS + OTHERS
SIZES = (0, 1, 1, 2, 3, 4, 5, 7)

Change = Callable[[Tensor], Tensor]


class Subclass(Tensor):
    """A subclass whose operations return the subclass, as those of MONAI's MetaTensor."""


class Unwrapping(Tensor):
    """A subclass whose operations return plain tensors, as those of torchvision's tv_tensors."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented  # two subclasses in one operation: PyTorch raises a TypeError
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def number_in(random: Random) -> Any:
    """Draw a number of any kind, or an object that resembles one."""
    return random.choice(
        [
            *(0, 1, -1, 2, 3, 7, 100, 255, 2**31, 2**63 - 1, 2**63, -(2**63), 2**70, 10**400),
            *(0.0, -0.0, 0.005, 0.1, 0.5, 1.0, 1.5, -0.1, 100.0, 1e-30, 1e30, 5e-324, 1e308),
            *(math.nan, math.inf, -math.inf, True, False, Fraction(1, 3), Decimal("0.1"), 1j),
            *(np.float32(0.1), np.float64(0.1), np.int64(2), np.bool_(True)),
        ]
    )


def thing_in(random: Random) -> Any:
    """Draw an object that is not a tensor and in most cases not a valid argument."""
    return random.choice(
        [
            *(None, "", "mean", "none", "negatives", "all", "batch", "pixels", b"mean", object()),
            *((), [], {}, set(), ("image",), ["pixels", "regions"], ("batch", "image"), [None]),
            *([[]], (None, None), [1.0], range(3), int, torch.float32, torch.int64, "cpu"),
            *(np.zeros((2, 3), np.float32), np.zeros(0), np.array("mean"), torch.Generator()),
            *(nn.Identity(), print, lambda *_, **__: None, slice(None), NotImplemented),
        ]
    )


def anything(random: Random) -> Any:
    """Draw a tensor, a number or another object."""
    return random.choice((tensor_in, tensor_in, tensor_in, number_in, thing_in))(random)


def tensor_in(random: Random, dtype: torch.dtype | None = None) -> Tensor:
    """Draw a tensor of any rank, size, dtype, values and memory layout."""
    shape = [random.choice(SIZES) for _ in range(random.choice((0, 1, 1, 2, 2, 2, 3, 4, 5, 6)))]
    return disguised(random, filled(random, shape, dtype or random.choice(DTYPES)))


def filled(random: Random, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Draw values of one kind, from plain ones to NaN and infinities."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    wide = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    if dtype in INTEGERS or dtype in OTHERS:
        odd = random.choice((0, 0, 1, 2, 100, 255, 2**24 - 1, 2**24, 2**31, 2**62))
        whole = (wide * random.choice((0, 1, 3, 100))).to(torch.int64) + odd * (wide > 1)
        return whole.to(dtype)
    kinds: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: wide,
        "zeros": lambda: wide * 0,
        "tiny": lambda: wide * 1e-42,
        "small": lambda: wide * 1e-20,
        "large": lambda: wide * 1e20,
        "huge": lambda: wide * 1e38,
        "spread": lambda: wide * 10 ** (20 * wide),
        "not numbers": lambda: wide.masked_fill(wide > 1, torch.nan),
        "infinite": lambda: wide.masked_fill(wide > 1, torch.inf),
        "all infinite": lambda: wide * torch.inf,
        "equal": lambda: torch.ones_like(wide),
        "ends": lambda: wide.sign() * torch.finfo(dtype).max,
    }
    common = ["plain"] * 8
    return kinds[random.choice([*common, *kinds])]().to(dtype)


def _overlapping(tensor: Tensor) -> Tensor:
    """Return rows that share memory with the next row."""
    if tensor.ndim != 2 or tensor.numel() == 0:
        return tensor
    rows, columns = tensor.shape
    if tensor.reshape(-1).shape[0] < rows + columns:
        return tensor
    return tensor.reshape(-1).as_strided((rows, columns), (1, 1))


def _from_inference_mode(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def _can_require_grad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


LAYOUTS: tuple[Change, ...] = (
    lambda t: t,
    lambda t: t.repeat_interleave(2, dim=-1)[..., ::2] if t.ndim else t,
    lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim else t,
    lambda t: t[:1].expand(t.shape) if t.ndim and t.shape[0] else t,
    lambda t: t.as_subclass(Subclass),
    lambda t: t.as_subclass(Unwrapping),
)
"""Other memory layouts and subclasses; one of the layouts repeats a value."""
DISGUISES: tuple[Change, ...] = (
    lambda t: t,
    *LAYOUTS,
    lambda t: t[..., :1].expand(t.shape) if t.ndim and t.shape[-1] else t,
    _overlapping,
    lambda t: nn.Parameter(t, requires_grad=_can_require_grad(t)),
    lambda t: t.clone().requires_grad_() if _can_require_grad(t) else t,
    lambda t: t.clone().requires_grad_() * 1 if _can_require_grad(t) else t,
    lambda t: torch._neg_view(-t) if t.is_floating_point() and t.element_size() > 1 else t,
    lambda t: t.flip(0) if t.ndim else t,
)
RARE: tuple[Change, ...] = (
    lambda t: t.to("meta"),
    lambda t: t.to_sparse() if t.ndim and t.element_size() > 1 else t,
    lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged) if t.ndim > 1 else t,
    _from_inference_mode,
)


def disguised(random: Random, tensor: Tensor) -> Tensor:
    """Change strides, class or autograd state of a tensor, and its values little or not at all."""
    change = random.choice(RARE if random.random() < 0.02 else DISGUISES)
    try:
        return change(tensor)
    except (NotImplementedError, RuntimeError):  # PyTorch lacks the operation for this dtype
        return tensor


def laid_out(random: Random, tensor: Tensor) -> Tensor:
    """Change the strides or the class of a tensor."""
    return random.choice(LAYOUTS)(tensor)
