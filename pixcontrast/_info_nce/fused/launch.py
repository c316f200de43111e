"""Launch kernels: their common arguments, and the splits of the contrast entries."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor, product_precision
from pixcontrast._info_nce.results import AnchorStatistics
from pixcontrast._triton import LAUNCH_OPTIONS, ceil_div, next_power_of_2

MIN_BLOCKS = 4
"""Smallest number of blocks of entries of one program."""
MAX_SPLITS = 64
SPLIT_COST = 5.0
"""Cost of a split, as the number of blocks of entries that a program visits in the same time.

A split writes and reads a partial result of 8·M·D bytes; a block of 64 entries takes 256·M·D
floating-point operations. At 3 TB/s and 60% of 800 TFLOP/s the former takes as long as 5 of the
latter.
"""


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Settings(NamedTuple):
    """How a kernel computes similarities. Fields in capitals are compile-time constants.

    Similarities are multiplied by `scale`, log2(e) / τ, and saturate at `limit` unless `BOUNDED`.
    `WEIGHTED` partial results hold a part of the gradient.
    """

    scale: float
    limit: float
    inverse_temperature: float
    D: Any
    BLOCK_D: Any
    BLOCK_M: Any
    BLOCK_N: Any
    PRECISION: Any
    ALL: Any
    BOUNDED: Any
    IS_ANCHORS: Any
    WEIGHTED: Any


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    layout: Layout,
    configuration: Configuration,
    tensor: SurveyedTensor | None = None,
    /,
    *,
    weighted: bool = False,
    **arguments: Any,
) -> None:
    """Launch a kernel. Arguments are found by name in the layout, the tensor and `arguments`."""
    problem = layout.problem
    constants, settings = _settings(
        layout.scales,
        problem.anchors.shape[1],
        (configuration.rows, configuration.columns),
        product_precision(problem.product_dtype),
        problem.denominator == "all",
        layout.bounded,
        tensor is not None and tensor.is_anchors,
        weighted,
    )
    given: dict[str, Any] = {
        **vars(layout),
        "num_anchors": len(layout),
        "num_valid": layout.anchors.num_valid,
        "inverse_temperature": settings.inverse_temperature,
        # Kernels that use few constants take these alone, and so have fewer variants.
        **constants,
        "settings": settings,
        **arguments,
    }
    if tensor is not None:
        given |= {
            "entries": tensor.entries,
            "num_entries": len(tensor),
            "num_blocks": tensor.num_blocks,
        }
    taken = {name: given[name] for name in kernel.arg_names if name in given}
    options = {"num_warps": configuration.warps, "num_stages": configuration.stages}
    kernel[grid](**taken, **options, **LAUNCH_OPTIONS)


@lru_cache(maxsize=256)  # every step makes the same launches
def _settings(
    scales: tuple[float, float, float],
    dim: int,
    block: tuple[int, int],
    precision: str,
    all_in_denominator: bool,
    bounded: bool,
    is_anchors: bool,
    weighted: bool,
) -> tuple[dict[str, Any], Settings]:
    constants = {
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": block[0],
        "BLOCK_N": block[1],
        "PRECISION": precision,
        "ALL": all_in_denominator,
        "BOUNDED": bounded,
        "IS_ANCHORS": is_anchors,
        "WEIGHTED": weighted,
    }
    return constants, Settings(*scales, *map(tl.constexpr, constants.values()))


def padded_dim(dim: int) -> int:
    """Return D rounded up to a power of two that a matrix unit supports."""
    return max(16, next_power_of_2(dim))


class Splits(NamedTuple):
    """The range of partial results that the programs of a contrast tensor write.

    `weighted`: whether they include a part of the gradient. For the anchors against themselves they
    do not, because the backward computes that gradient.
    """

    tensor: SurveyedTensor
    weighted: bool
    first: int
    num_splits: int


def plan_splits(layout: Layout, configuration: Configuration) -> list[Splits]:
    """Split every contrast tensor that has entries. Weighted partial results come first."""
    tensors = [
        (tensor, layout.problem.want_gradient and not has_both_roles(layout, tensor))
        for tensor in layout.contrast
        if tensor.num_blocks > 0
    ]
    row_blocks = ceil_div(len(layout), configuration.rows)
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


@lru_cache(maxsize=256)
def num_splits_for(num_processors: int, row_blocks: int, num_blocks: int) -> int:
    """Return the number of splits of `num_blocks` blocks of entries that takes the least time.

    The time of a pass is that of its waves of programs, plus `SPLIT_COST` for each split. Example:
    on 132 processors, 1,024 anchors in 8 row blocks against 190,000 entries take 33 splits, two
    full waves; 4,096 anchors take 4 splits.
    """

    def cost(num_splits: int) -> float:
        waves = ceil_div(row_blocks * num_splits, num_processors)
        merging = SPLIT_COST * row_blocks * num_splits / num_processors
        return float(waves * num_blocks / num_splits + merging)

    max_splits = min(MAX_SPLITS, ceil_div(num_blocks, MIN_BLOCKS))
    return min(range(1, max(1, max_splits) + 1), key=cost)


def launch_splits(
    kernel: Any, layout: Layout, configuration: Configuration, plan: list[Splits], **arguments: Any
) -> None:
    """Launch a kernel once for each contrast tensor. Each launch writes its range of results."""
    row_blocks = ceil_div(len(layout), configuration.rows)
    for tensor, weighted, first_split, num_splits in plan:
        launch(
            kernel,
            (row_blocks, num_splits),
            layout,
            configuration,
            tensor,
            weighted=weighted,
            first_split=first_split,
            survey=tensor.survey,
            **arguments,
        )


def launch_entries_gradient(
    layout: Layout,
    tensor: SurveyedTensor,
    statistics: AnchorStatistics,
    upstream: Tensor,
    num_splits: int,
) -> Tensor:
    """Compute the gradient of a contrast tensor through each split of the anchors, (S, n, D).

    One split has the dtype of the result, more than one that of its sum.
    """
    problem, configuration = layout.problem, layout.configurations.entries
    in_float32 = problem.product_dtype == torch.float16
    if in_float32:
        # The converted tile takes the registers of a second stage.
        configuration = configuration._replace(stages=1)
    dtype = problem.entries_gradient_dtype if num_splits == 1 else torch.float32
    shape = num_splits, len(tensor), problem.anchors.shape[1]
    gradients = upstream.new_empty(shape, dtype=dtype)
    if len(tensor) > 0:
        launch(
            entries_gradient_kernel,
            (ceil_div(len(tensor), configuration.rows), num_splits),
            layout,
            configuration,
            tensor,
            statistics=statistics,
            upstream=upstream,
            upstream_stride=upstream.stride(0),
            gradients=gradients,
            BOTH_ROLES=has_both_roles(layout, tensor),
            IN_FLOAT32=in_float32,
        )
    return gradients


def positives_limit(layout: Layout) -> float:
    """Return a power of two that is at least the number of positives of any anchor."""
    total = sum(len(tensor) for tensor in layout.contrast)
    return float(next_power_of_2(max(1, total)))
