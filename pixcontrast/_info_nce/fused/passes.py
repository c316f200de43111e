"""The launches of the fused form: one function for each pass over tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.kernels.merge import lse_kernel, merge_kernel
from pixcontrast._info_nce.fused.kernels.positives import positives_kernel
from pixcontrast._info_nce.fused.launch import (
    anchor_arguments,
    constants_of,
    entry_arguments,
    equation_constants,
    mining_arguments,
    positives_limit,
    scale_and_limit,
)
from pixcontrast._info_nce.fused.layout import CHUNK, Layout, SurveyedTensor
from pixcontrast._info_nce.fused.splits import Splits, has_both_roles, num_splits_for, plan_splits
from pixcontrast._info_nce.results import AnchorStatistics, ForwardResult
from pixcontrast._info_nce.thresholds import Thresholds

LSE_ROWS = 128
MERGED_ROWS, MERGED_COMPONENTS = 16, 64
"""Anchors and components of a program that merges partial results."""


class Partials(NamedTuple):
    """Partial results of the denominator: (S, M), (S, M) and (W, M, D) for S splits, W ≤ S.

    Attributes:
        maxima: what the exponents are relative to; not written and taken as 0 if bounded.
        totals: Σ exp2(s − maximum).
        weighted: Σ exp2(s − maximum)·k of the splits whose gradient the forward computes.
        lse: (M,) Z to the base 2, over all splits.
    """

    maxima: Tensor
    totals: Tensor
    weighted: Tensor
    lse: Tensor


class PositiveSums(NamedTuple):
    """Sums over the positives of each split: (S, M) three times and (W, M, D), W ≤ S."""

    counts: Tensor
    losses: Tensor
    weights: Tensor
    vectors: Tensor


def denominator_pass(
    layout: Layout, thresholds: Thresholds | None, *, want_gradient: bool
) -> Partials:
    """Compute partial results over every contrast tensor, and the Z that they merge to."""
    configuration = layout.configurations.denominator
    plan = plan_splits(layout, configuration, want_gradient)
    num_anchors, dim = layout.anchors.vectors.shape
    num_splits, num_weighted = _count(plan)
    like = layout.anchors.vectors.new_empty(0, dtype=torch.float32)
    maxima, totals = (like.new_empty(num_splits, num_anchors) for _ in range(2))
    sums = like.new_empty(num_weighted, num_anchors, dim)
    lse = like.new_empty(num_anchors)
    for tensor, weighted, first, splits in plan:
        denominator_kernel[(triton.cdiv(num_anchors, configuration.rows), splits)](
            *anchor_arguments(layout),
            *entry_arguments(tensor, layout),
            tensor.survey.first_classes,
            tensor.survey.last_classes,
            tensor.block_index,
            tensor.num_blocks,
            *mining_arguments(layout, tensor, thresholds),
            maxima[first:],
            totals[first:],
            sums[first:] if weighted else sums,
            num_anchors,
            *scale_and_limit(layout),
            WEIGHTED=weighted,
            CHUNK=CHUNK,
            **equation_constants(layout),
            **constants_of(layout, tensor, configuration),
        )
    lse_kernel[(triton.cdiv(num_anchors, LSE_ROWS),)](
        maxima,
        totals,
        lse,
        num_splits,
        num_anchors,
        layout.anchors.num_valid,
        BLOCK=LSE_ROWS,
        BOUNDED=layout.bounded,
    )
    return Partials(maxima, totals, sums, lse)


def positives_pass(
    layout: Layout, lse: Tensor, thresholds: Thresholds | None, *, want_gradient: bool
) -> PositiveSums:
    """Compute the sums over the positives in every contrast tensor, given Z to the base 2."""
    configuration = layout.configurations.positives
    plan = plan_splits(layout, configuration, want_gradient)
    num_anchors, dim = layout.anchors.vectors.shape
    num_splits, num_weighted = _count(plan)
    like = layout.anchors.vectors.new_empty(0, dtype=torch.float32)
    counts = like.new_empty(num_splits, num_anchors, dtype=torch.int32)
    losses, weights = (like.new_empty(num_splits, num_anchors) for _ in range(2))
    vectors = like.new_empty(num_weighted, num_anchors, dim)
    for tensor, weighted, first, splits in plan:
        positives_kernel[(triton.cdiv(num_anchors, configuration.rows), splits)](
            *anchor_arguments(layout),
            lse,
            *entry_arguments(tensor, layout),
            tensor.survey.first_classes,
            tensor.survey.last_classes,
            tensor.num_blocks,
            *mining_arguments(layout, tensor, thresholds)[2:],
            counts[first:],
            losses[first:],
            weights[first:],
            vectors[first:] if weighted else vectors,
            num_anchors,
            *scale_and_limit(layout),
            1.0 / positives_limit(layout),
            WEIGHTED=weighted,
            CHUNK=CHUNK,
            TILES=layout.configurations.denominator.columns // configuration.columns,
            **equation_constants(layout),
            **constants_of(layout, tensor, configuration),
        )
    return PositiveSums(counts, losses, weights, vectors)


def merge(layout: Layout, partials: Partials, sums: PositiveSums, result: ForwardResult) -> None:
    """Merge the partial results of both passes into `result`, in the caller's order."""
    problem = layout.problem
    num_anchors, dim = layout.anchors.vectors.shape
    gradient = result.anchor_gradient
    blocks = 1 if gradient is None else triton.cdiv(dim, MERGED_COMPONENTS)
    merge_kernel[(triton.cdiv(num_anchors, MERGED_ROWS), blocks)](
        layout.anchors.order,
        layout.anchors.num_valid,
        partials.lse,
        partials.maxima,
        partials.weighted,
        len(partials.weighted),
        sums.counts,
        sums.losses,
        sums.weights,
        sums.vectors,
        len(sums.counts),
        len(sums.vectors),
        result.losses,
        result.has_positive,
        *result.statistics,
        result.losses if gradient is None else gradient,
        num_anchors,
        positives_limit(layout),
        problem.inverse_temperature,
        D=dim,
        BLOCK_M=MERGED_ROWS,
        BLOCK_D=MERGED_COMPONENTS,
        ALL=problem.denominator == "all",
        BOUNDED=layout.bounded,
        WEIGHTED=gradient is not None,
    )


def entries_gradient_pass(
    layout: Layout,
    tensor: SurveyedTensor,
    statistics: AnchorStatistics,
    thresholds: Thresholds | None,
    upstream: Tensor,
) -> Tensor:
    """Compute the gradient (n, D) of a contrast tensor; of the anchors, in both of their roles."""
    problem = layout.problem
    configuration = layout.configurations.entries
    num_anchors, dim = layout.anchors.vectors.shape
    if len(tensor) == 0:
        return layout.anchors.vectors.new_empty(0, dim, dtype=torch.float32)
    row_blocks = triton.cdiv(len(tensor), configuration.rows)
    anchor_blocks = triton.cdiv(num_anchors, configuration.columns)
    num_splits = num_splits_for(layout.num_processors, row_blocks, anchor_blocks)
    like = layout.anchors.vectors
    gradients = like.new_empty(num_splits, len(tensor), dim, dtype=torch.float32)
    entries_gradient_kernel[(row_blocks, num_splits)](
        *anchor_arguments(layout),
        *statistics,
        upstream,
        *entry_arguments(tensor, layout),
        *mining_arguments(layout, tensor, thresholds),
        gradients,
        *scale_and_limit(layout),
        problem.inverse_temperature,
        BOTH_ROLES=has_both_roles(layout, tensor),
        IN_FLOAT32=problem.product_dtype == torch.float16,
        **equation_constants(layout),
        **constants_of(layout, tensor, configuration),
    )
    return gradients[0] if num_splits == 1 else gradients.sum(dim=0)


def _count(plan: list[Splits]) -> tuple[int, int]:
    """Return the number of splits, and of those whose partial results hold a gradient."""
    return sum(one.num_splits for one in plan), sum(one.num_splits for one in plan if one.weighted)
