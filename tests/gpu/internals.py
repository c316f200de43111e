"""All that the GPU tests use of private modules: of the package, and of Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks._measure.command import matmul_precision
from pixcontrast import _triton
from pixcontrast._info_nce import dense as dense_form

__all__ = [
    "configuration_table",
    "launch_without_a_card",
    "matmul_precision",
    "plain_products",
    "truncate_tf32_operands",
    "use_configuration",
]


@contextmanager
def plain_products() -> Iterator[None]:
    """Make the dense form multiply as PyTorch does.

    Operands, results and both gradients have the given dtype; the rest is float32.
    """
    with (
        patch.object(
            dense_form, "_operand", lambda problem, given: given.to(problem.product_dtype)
        ),
        patch.object(
            dense_form, "_product", lambda anchors, entries: (anchors @ entries.T).float()
        ),
    ):
        yield


def configuration_table() -> dict[int, dict[str, dict[int, Any]]]:
    """The tiles by compute capability, kind of product ("16", "mixed", ...) and largest D."""
    from pixcontrast._info_nce.fused.configurations import TABLE

    return TABLE


def use_configuration(tiles: Any) -> Any:
    """Context manager in which every fused call uses these tiles."""
    from pixcontrast._info_nce.fused.configurations import using

    return using(tiles)


def launch_without_a_card(capability: tuple[int, int], processors: int) -> None:
    """Make the fused form accept CPU tensors, with the tiles and the grids of a card.

    For counting kernels: the caller replaces the launches themselves.
    """

    class Properties:
        multi_processor_count = processors

    torch.cuda.get_device_capability = lambda device=None: capability
    torch.cuda.get_device_properties = lambda device=None: Properties
    _triton.why_not_on = lambda kind, index: None
    _triton.auto_takes_fused = lambda kind, index: True


def truncate_tf32_operands() -> None:
    """Make Triton's interpreter truncate TF32 operands to 10 bits of mantissa, as a GPU does."""
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact = InterpreterBuilder.create_dot

    def truncated(handle: Any) -> Any:
        if handle.data.dtype != np.float32:
            return handle
        bits = np.ascontiguousarray(handle.data).view(np.uint32) & np.uint32(0xFFFFE000)
        return TensorHandle(bits.view(np.float32), handle.dtype)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        if input_precision == ir.INPUT_PRECISION.TF32:
            a, b = truncated(a), truncated(b)
        return exact(self, a, b, d, input_precision, *rest)

    InterpreterBuilder.create_dot = create_dot
