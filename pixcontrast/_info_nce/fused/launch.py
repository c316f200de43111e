"""How kernels are launched: their common arguments, and the splits of the contrast entries."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.layout import (
    Layout,
    SurveyedTensor,
    padded_dim,
    product_precision,
)
from pixcontrast._info_nce.problem import LOG2_E
from pixcontrast._info_nce.thresholds import Thresholds

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


def launch(kernel: Any, grid: tuple[int, ...], layout: Layout, **arguments: Any) -> None:
    """Launch a kernel with what it takes of `arguments` and of the arguments that all share."""
    problem = layout.problem
    num_anchors, dim = layout.anchors.shape
    given = {
        "anchors": layout.anchors,
        "order": layout.order,
        "anchor_classes": layout.anchor_classes,
        "anchor_bits": layout.anchor_bits,
        "num_valid": layout.num_valid,
        "num_anchors": num_anchors,
        "inverse_temperature": problem.inverse_temperature,
        "D": dim,
        "ALL": problem.denominator == "all",
        "BOUNDED": layout.bounded,
        **arguments,
    }
    taken = (*kernel.arg_names, "num_warps", "num_stages")
    kernel[grid](**{name: given[name] for name in taken if name in given})


def product_arguments(
    layout: Layout,
    tensor: SurveyedTensor,
    configuration: Configuration,
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Return the arguments of a kernel that multiplies anchors with the entries of a tensor."""
    problem = layout.problem
    row_stride, column_stride = tensor.entries.stride()
    largest = torch.finfo(problem.product_dtype).max
    unused = Thresholds(*[layout.anchor_classes] * 4)
    return {
        "entries": tensor.entries,
        "entry_classes": tensor.classes,
        "entry_bits": tensor.bits,
        "num_entries": len(tensor),
        "row_stride": row_stride,
        "column_stride": column_stride,
        **(unused if thresholds is None else thresholds)._asdict(),
        # Exponents are to the base 2.
        "scale": min(problem.inverse_temperature * LOG2_E, torch.finfo(torch.float32).max),
        "limit": problem.logit_limit * LOG2_E,
        "BLOCK_D": padded_dim(problem.anchors.shape[1]),
        "BLOCK_M": configuration.rows,
        "BLOCK_N": configuration.columns,
        "IS_ANCHORS": tensor.is_anchors,
        "MINED": problem.negative_sampler is not None,
        "LARGEST": largest if torch.finfo(tensor.entries.dtype).max > largest else None,
        "PRECISION": product_precision(problem.product_dtype),
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
    }


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
    thresholds: Thresholds | None = None,
    **arguments: Any,
) -> None:
    """Launch a kernel over every contrast tensor. Each writes a range of the partial results."""
    row_blocks = triton.cdiv(len(layout.anchors), configuration.rows)
    for tensor, weighted, first, num_splits in plan:
        launch(
            kernel,
            (row_blocks, num_splits),
            layout,
            **product_arguments(layout, tensor, configuration, thresholds),
            **{name: values[first:] for name, values in partials.items()},
            **arguments,
            survey=tensor.survey,
            num_blocks=tensor.num_blocks,
            WEIGHTED=weighted,
        )
