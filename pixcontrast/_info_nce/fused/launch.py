"""How kernels are launched: their common arguments, and the splits of the contrast entries."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor, product_precision
from pixcontrast._info_nce.problem import LOG2_E

MIN_BLOCKS = 4
"""Fewest blocks of entries that are worth a program."""
MAX_SPLITS = 64
SPLIT_COST = 5.0
"""Cost of a split, in blocks of entries that a program could visit meanwhile.

A split writes and reads a partial result of 8·M·D bytes; a block of 64 entries takes 256·M·D
floating-point operations. At 3 TB/s and 60% of 800 TFLOP/s the former takes as long as 5 of the
latter.
"""


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    layout: Layout,
    tensor: SurveyedTensor | None = None,
    configuration: Configuration | None = None,
    /,
    **arguments: Any,
) -> None:
    """Launch a kernel with those of its arguments that are given here, found by their names.

    A kernel that multiplies the anchors with a contrast tensor takes both the tensor and a tile.
    """
    problem = layout.problem
    num_anchors, dim = layout.anchors.shape
    given: dict[str, Any] = {
        **vars(layout),
        **layout.thresholds._asdict(),
        "num_anchors": num_anchors,
        "inverse_temperature": problem.inverse_temperature,
        "D": dim,
        "ALL": problem.denominator == "all",
        "BOUNDED": layout.bounded,
        "MINED": problem.negative_sampler is not None,
        **arguments,
    }
    if tensor is not None and configuration is not None:
        row_stride, column_stride = tensor.entries.stride()
        largest = torch.finfo(problem.product_dtype).max
        given |= {
            **vars(tensor),
            "num_entries": len(tensor),
            "row_stride": row_stride,
            "column_stride": column_stride,
            # Exponents are to the base 2.
            "scale": min(problem.inverse_temperature * LOG2_E, torch.finfo(torch.float32).max),
            "limit": problem.logit_limit * LOG2_E,
            "BLOCK_D": padded_dim(dim),
            "BLOCK_M": configuration.rows,
            "BLOCK_N": configuration.columns,
            "IS_ANCHORS": tensor.is_anchors,
            "largest": largest if torch.finfo(tensor.entries.dtype).max > largest else None,
            "PRECISION": product_precision(problem.product_dtype),
            "num_warps": configuration.warps,
            "num_stages": configuration.stages,
        }
    taken = (*kernel.arg_names, "num_warps", "num_stages")
    kernel[grid](**{name: given[name] for name in taken if name in given})


def padded_dim(dim: int) -> int:
    """Return D rounded up to a power of two that a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(dim)))


class Splits(NamedTuple):
    """The range of partial results that the programs of a contrast tensor write.

    Attributes:
        weighted: whether the partial results hold a part of the gradient. The backward computes
            that of the anchors against themselves, in both roles at once.
    """

    tensor: SurveyedTensor
    weighted: bool
    first: int
    num_splits: int


def plan_splits(layout: Layout, configuration: Configuration, want_gradient: bool) -> list[Splits]:
    """Split every contrast tensor that has entries. Weighted partial results come first."""
    tensors = [
        (tensor, want_gradient and not has_both_roles(layout, tensor))
        for tensor in layout.contrast
        if tensor.num_blocks > 0
    ]
    row_blocks = triton.cdiv(len(layout.anchors), configuration.rows)
    plan: list[Splits] = []
    first = 0
    for tensor, weighted in sorted(tensors, key=lambda pair: not pair[1]):
        num_splits = num_splits_for(layout.num_processors, row_blocks, tensor.num_blocks)
        plan.append(Splits(tensor, weighted, first, num_splits))
        first += num_splits
    return plan


def has_both_roles(layout: Layout, tensor: SurveyedTensor) -> bool:
    """Return whether the backward computes the gradient of both roles of the anchors at once."""
    return tensor.is_anchors and layout.problem.negative_sampler is None


def num_splits_for(num_processors: int, row_blocks: int, num_blocks: int) -> int:
    """Return the number of splits of `num_blocks` blocks of entries that takes the least time.

    The time of a pass is that of its waves of programs, plus `SPLIT_COST` for each split. On 132
    processors 1,024 anchors in 8 row blocks against 190,000 entries take 33 splits, which are two
    full waves, and 4,096 anchors take 4.
    """

    def cost(num_splits: int) -> float:
        waves = triton.cdiv(row_blocks * num_splits, num_processors)
        merging = SPLIT_COST * row_blocks * num_splits / num_processors
        return float(waves * num_blocks / num_splits + merging)

    max_splits = min(MAX_SPLITS, triton.cdiv(num_blocks, MIN_BLOCKS))
    return min(range(1, max(1, max_splits) + 1), key=cost)


def launch_splits(
    kernel: Any,
    layout: Layout,
    configuration: Configuration,
    plan: list[Splits],
    partials: Mapping[str, Tensor],
    **arguments: Any,
) -> None:
    """Launch a kernel over every contrast tensor. Each writes a range of the partial results."""
    row_blocks = triton.cdiv(len(layout.anchors), configuration.rows)
    for tensor, weighted, first, num_splits in plan:
        launch(
            kernel,
            (row_blocks, num_splits),
            layout,
            tensor,
            configuration,
            **{name: values[first:] for name, values in partials.items()},
            **arguments,
            survey=tensor.survey,
            num_blocks=tensor.num_blocks,
            WEIGHTED=weighted,
        )
