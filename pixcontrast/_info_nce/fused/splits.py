"""Into how many programs the contrast entries of each tensor are split."""

from __future__ import annotations

from typing import NamedTuple

import triton

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor

MIN_BLOCKS = 4
"""Fewest blocks of entries that are worth a program."""
MAX_SPLITS = 64
SPLIT_COST = 5.0
"""Cost of a split, in blocks of entries that a program could visit meanwhile.

A split writes and reads a partial result of 8·M·D bytes; a block of 64 entries takes 256·M·D
floating-point operations. At 3 TB/s and 60% of 800 TFLOP/s the former takes as long as 5 of the
latter.
"""


class Splits(NamedTuple):
    """The range of partial results that the programs of a contrast tensor write.

    Attributes:
        tensor: the contrast tensor.
        weighted: whether the partial results hold a part of the gradient. The backward computes
            that of the anchors against themselves, in both roles at once.
        first: index of the first partial result.
        num_splits: number of partial results.
    """

    tensor: SurveyedTensor
    weighted: bool
    first: int
    num_splits: int


def has_both_roles(layout: Layout, tensor: SurveyedTensor) -> bool:
    """Return whether the backward computes the gradient of both roles of the anchors at once."""
    return tensor.is_anchors and layout.problem.negative_sampler is None


def plan_splits(layout: Layout, configuration: Configuration, want_gradient: bool) -> list[Splits]:
    """Split every contrast tensor that has entries. Weighted partial results come first."""
    tensors = [
        (tensor, want_gradient and not has_both_roles(layout, tensor))
        for tensor in layout.contrast
        if tensor.num_blocks > 0
    ]
    row_blocks = triton.cdiv(len(layout.anchors.labels), configuration.rows)
    plan: list[Splits] = []
    first = 0
    for tensor, weighted in sorted(tensors, key=lambda pair: not pair[1]):
        num_splits = num_splits_for(layout.num_processors, row_blocks, tensor.num_blocks)
        plan.append(Splits(tensor, weighted, first, num_splits))
        first += num_splits
    return plan


def num_splits_for(num_processors: int, row_blocks: int, num_blocks: int) -> int:
    """Return the number of splits of `num_blocks` blocks of entries that takes the least time.

    The time of a pass is that of its waves of programs, plus `SPLIT_COST` for each split. On 132
    processors 1,024 anchors in 8 row blocks against 190,000 entries take 33 splits, which are two
    full waves, and 4,096 anchors take 4.

    Args:
        num_processors (int): number of programs that run at the same time.
        row_blocks (int): number of programs of each split.
        num_blocks (int): number of blocks to split.
    """

    def cost(num_splits: int) -> float:
        waves = triton.cdiv(row_blocks * num_splits, num_processors)
        merging = SPLIT_COST * row_blocks * num_splits / num_processors
        return float(waves * num_blocks / num_splits + merging)

    max_splits = min(MAX_SPLITS, triton.cdiv(num_blocks, MIN_BLOCKS))
    return min(range(1, max(1, max_splits) + 1), key=cost)
