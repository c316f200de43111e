"""Launch kernels: their common arguments, and the splits of the contrast entries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor
from pixcontrast._info_nce.results import AnchorStatistics
from pixcontrast._launch import launch
from pixcontrast._triton import ceil_div, next_power_of_2

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


def launch_tiles(
    kernel: Any,
    grid: tuple[int, ...],
    layout: Layout,
    configuration: Configuration,
    tensor: SurveyedTensor,
    arguments: Sequence[Any],
    *constants: Any,
    weighted: bool = False,
) -> None:
    """Launch a kernel that computes similarities. Its constants are `Settings` and `constants`."""
    variant = layout.common, configuration, tensor.is_anchors, weighted
    key = layout.order.get_device(), variant, constants
    constants = _settings(layout.scales, *variant), *constants
    launch(kernel, grid, arguments, constants, key, *configuration[2:])


def launch_rows(
    kernel: Any,
    grid: tuple[int, ...],
    layout: Layout,
    configuration: Configuration,
    arguments: Sequence[Any],
    *constants: Any,
) -> None:
    """Launch a kernel that needs few constants, and so has few variants."""
    variant = layout.order.get_device(), configuration, constants
    launch(kernel, grid, arguments, constants, variant, *configuration[2:])


@lru_cache(maxsize=256)  # every step makes the same launches
def _settings(
    scales: tuple[float, float, float],
    common: tuple[int, str, bool, bool],
    configuration: Configuration,
    *flags: bool,
) -> Settings:
    dim, *others = common
    sizes = dim, padded_dim(dim), configuration.rows, configuration.columns
    return Settings(*scales, *map(tl.constexpr, (*sizes, *others, *flags)))


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
    row_blocks = ceil_div(layout.num_anchors, configuration.rows)
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
    kernel: Any,
    layout: Layout,
    configuration: Configuration,
    plan: list[Splits],
    arguments: Sequence[Any],
    *constants: Any,
) -> None:
    """Launch a kernel once for each contrast tensor. Each launch writes its range of results."""
    row_blocks = ceil_div(layout.num_anchors, configuration.rows)
    for tensor, weighted, first_split, num_splits in plan:
        launch_tiles(
            kernel,
            (row_blocks, num_splits),
            layout,
            configuration,
            tensor,
            (layout.anchors, layout.num_anchors, *tensor.arguments, first_split, *arguments),
            *constants,
            weighted=weighted,
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
    dtype = problem.entries_gradient_dtype if num_splits == 1 else torch.float32
    shape = num_splits, len(tensor), problem.anchors.shape[1]
    gradients = upstream.new_empty(shape, dtype=dtype)
    if len(tensor) > 0:
        launch_tiles(
            entries_gradient_kernel,
            (ceil_div(len(tensor), configuration.rows), num_splits),
            layout,
            configuration,
            tensor,
            (
                layout.anchors,
                *tensor.arguments[:2],
                layout.thresholds,
                statistics,
                upstream,
                upstream.stride(0),
                gradients,
            ),
            has_both_roles(layout, tensor),
            problem.product_dtype == torch.float16,
        )
    return gradients
