"""The fused form: Triton kernels that never write a similarity to memory.

The passes are those of the tiled form. `denominator_pass` computes partial results
of Z and o, `positives_pass` visits the positives, and `merge` combines both into the losses and the
gradient of the anchors. The backward computes the gradient of the entries. If the anchors are
contrast entries too, it computes the gradient of both of their roles against each other.

The contrast entries are divided into S splits. Partial results are tensors (S, M) of numbers and
(W, M, D) of vectors: the W ≤ S splits for which the forward computes the gradient come first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks
from pixcontrast._info_nce.derivative import inverse_or_zero
from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel, lse_kernel
from pixcontrast._info_nce.fused.kernels.positives import merge_kernel, positives_kernel
from pixcontrast._info_nce.fused.launch import (
    Splits,
    launch_entries_gradient,
    launch_rows,
    launch_splits,
    num_splits_for,
    on_device,
    plan_splits,
)
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor, lay_out
from pixcontrast._info_nce.fused.small import is_small, small_forward, small_gradient
from pixcontrast._info_nce.fused.thresholds import Source, select_thresholds
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    PositivesPartial,
    allocate_entries_gradient,
    allocate_forward,
    finite,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds
from pixcontrast._triton import ceil_div

# Tiles of the kernels that merge partial results, in anchors, and in splits or components.
LSE_TILE, MERGED_TILE = Configuration(32, 16, 4, 3), Configuration(16, 64, 4, 3)


class DenominatorSums(NamedTuple):
    """Partial results of Z and o: maxima, Σ exp2(s − maximum) and Σ exp2(s − maximum)·k.

    All are to the base 2. If similarities are bounded, the maxima are 0 and not written.
    """

    maxima: Tensor
    totals: Tensor
    weighted_sums: Tensor


class PositiveSums(NamedTuple):
    """Partial results over the positives: counts, and sums of losses, weights and vectors."""

    counts: Tensor
    losses: Tensor
    weights: Tensor
    positive_sums: Tensor


def fused_forward(
    problem: Problem,
) -> tuple[ForwardResult, Thresholds | None, Layout | None]:
    """Compute the losses and, if requested, the gradient of the anchors.

    The backward computes the gradient of the anchors against themselves. The statistics are those
    of the sorted anchors, or in the caller's order if the problem is small. Z in them and the
    thresholds (None without a negative sampler) are to the base 2. The layout is None if there is
    nothing to contrast.
    """
    if is_small(problem):
        result, layout = small_forward(problem)
        return result, None, layout
    thresholds = None
    has_entries = any(problem.is_anchors) or any(map(Tensor.numel, problem.entry_labels))
    if problem.labels.shape[0] == 0 or not has_entries:
        if problem.negative_sampler is not None:
            thresholds = allocate_thresholds(problem)
        return allocate_forward(problem), thresholds, None
    result = allocate_forward(problem, Tensor.new_empty)
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        if problem.negative_sampler is not None:
            sources = [Source(layout, layout.order)]
            thresholds = select_thresholds(problem.negative_sampler, sources)
            layout = replace(layout, thresholds=thresholds.of(layout.order))
        partials = denominator_pass(layout, result.statistics.lse)
        merge(layout, partials, positives_pass(layout, result.statistics.lse), result)
    return result, thresholds, layout


def denominator_pass(layout: Layout, lse: Tensor) -> DenominatorSums:
    """Compute partial results over every contrast tensor, and write the merged Z to `lse`."""
    configuration = layout.configurations.denominator
    plan = plan_splits(layout, configuration)
    partials = DenominatorSums(*_allocate(layout, plan, torch.float32, torch.float32))
    launch_splits(denominator_kernel, layout, configuration, plan, (layout.thresholds, partials))
    num_anchors, num_splits = layout.num_anchors, partials.totals.shape[0]
    launch_rows(
        lse_kernel,
        (ceil_div(num_anchors, LSE_TILE.rows),),
        layout,
        LSE_TILE,
        (layout.anchors.num_valid, num_anchors, partials, num_splits, lse),
        *(LSE_TILE.rows, LSE_TILE.columns, layout.bounded),
    )
    return partials


def positives_pass(layout: Layout, lse: Tensor) -> PositiveSums:
    """Compute the sums over the positives in every contrast tensor, given Z to the base 2."""
    configuration = layout.configurations.positives
    plan = plan_splits(layout, configuration)
    sums = PositiveSums(*_allocate(layout, plan, torch.int32, torch.float32, torch.float32))
    launch_splits(
        positives_kernel,
        layout,
        configuration,
        plan,
        (layout.thresholds, lse, sums, 1.0 / layout.positives_limit),
        layout.configurations.denominator.columns // configuration.columns,
    )
    return sums


def _allocate(layout: Layout, plan: list[Splits], *dtypes: torch.dtype) -> list[Tensor]:
    """Return numbers (S, M) of each dtype, and vectors (W, M, D)."""
    num_splits = sum([splits.num_splits for splits in plan])
    num_weighted = sum([splits.num_splits for splits in plan if splits.weighted])
    like = layout.anchors.vectors
    num_anchors, dim = like.shape
    numbers = [like.new_empty(num_splits, num_anchors, dtype=dtype) for dtype in dtypes]
    return [*numbers, like.new_empty(num_weighted, num_anchors, dim, dtype=torch.float32)]


def merge(
    layout: Layout, partials: DenominatorSums, sums: PositiveSums, result: ForwardResult
) -> None:
    """Merge the partial results of both passes into `result`."""
    problem, num_anchors = layout.problem, layout.num_anchors
    dim = problem.anchors.shape[1]
    num_components = 1 if result.anchor_gradient is None else dim
    rows, columns = MERGED_TILE[:2]
    launch_rows(
        merge_kernel,
        (ceil_div(num_anchors, rows), ceil_div(num_components, columns)),
        layout,
        MERGED_TILE,
        (
            layout.anchors.num_valid,
            num_anchors,
            layout.order,
            result.statistics.lse,
            partials,
            partials.weighted_sums.shape[0],
            sums,
            sums.counts.shape[0],
            sums.positive_sums.shape[0],
            layout.positives_limit,
            result,
            layout.scales[2],
        ),
        *(dim, rows, columns, problem.denominator == "all", layout.bounded),
    )


def fused_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds | None,
    upstream: Tensor,
    wanted: list[bool],
    layout: Layout | None = None,
) -> list[Tensor | None]:
    """Compute Σ_i g_i ∂L_i/∂k_j for each requested contrast tensor, None for the others.

    For the anchors as contrast tensor, the result includes g_i ∂L_i/∂a_i against themselves.

    Args:
        layout: that of the forward, if it is known.
    """
    if problem.labels.numel() == 0:
        return allocate_entries_gradient(problem, wanted)
    if is_small(problem):
        return [small_gradient(problem, statistics, upstream, layout)]
    results: list[Tensor | None] = [None] * len(wanted)
    with on_device(problem.anchors.device):
        if layout is None:
            layout = lay_out(problem, index_blocks=False)
            if problem.negative_sampler is not None and thresholds is not None:
                layout = replace(layout, thresholds=thresholds.of(layout.order))
        if problem.group is not None:
            statistics = statistics.of(layout.order)
        upstream = upstream.index_select(0, layout.order)
        for index, tensor in enumerate(layout.contrast):
            if wanted[index]:
                gradient = entries_gradient_pass(layout, tensor, statistics, upstream)
                results[index] = layout.unsort(gradient) if tensor.is_anchors else gradient
    return results


def entries_gradient_pass(
    layout: Layout, tensor: SurveyedTensor, statistics: AnchorStatistics, upstream: Tensor
) -> Tensor:
    """Compute the gradient (n, D) of a contrast tensor; of the anchors, in both of their roles."""
    configuration = layout.configurations.entries
    row_blocks = ceil_div(len(tensor), configuration.rows)
    anchor_blocks = ceil_div(layout.num_anchors, configuration.columns)
    num_splits = num_splits_for(layout.num_processors, row_blocks, anchor_blocks)
    gradients = launch_entries_gradient(layout, tensor, statistics, upstream, num_splits)
    dtype = layout.problem.entries_gradient_dtype
    return gradients[0] if num_splits == 1 else gradients.sum(dim=0).to(dtype)


class FusedPasses:
    """The passes over a subset of the contrast entries, see `results.Passes`.

    Other ranks merge these results too, so PyTorch operations replace `merge`. The backward
    computes the gradient of the anchors against themselves, as in `fused_forward`.
    """

    def __init__(self, problem: Problem) -> None:
        with on_device(problem.anchors.device):
            self._layout = lay_out(problem)
        # Rows of ignored anchors are not written and may contain NaN.
        self._ignored = self._layout.anchors.classes < 0

    def find_thresholds(self, own: FusedPasses, ranks: Ranks) -> Thresholds:
        """Return the thresholds of all ranks' anchors, see `MinedPasses.find_thresholds`."""
        own_rows = own._layout.order + own._layout.problem.first_anchor_id
        sources = [Source(self._layout, self._layout.order), Source(own._layout, own_rows)]
        sampler = self._layout.problem.negative_sampler
        assert sampler is not None
        with on_device(own_rows.device):
            return select_thresholds(sampler, sources, ranks)

    def select(self, thresholds: Thresholds) -> None:
        """Restrict the passes to the entries that meet the thresholds of the anchors."""
        ordered = thresholds.of(self._layout.order)
        self._layout = replace(self._layout, thresholds=ordered)

    def denominator(self) -> DenominatorPartial:
        layout = self._layout
        lse = layout.anchors.vectors.new_empty(layout.num_anchors, dtype=torch.float32)
        with on_device(layout.order.device):
            partials = denominator_pass(layout, lse)
        lse = lse.masked_fill(self._ignored, -torch.inf)
        mean = None
        if layout.problem.want_gradient:
            mean = torch.zeros_like(layout.anchors.vectors, dtype=torch.float32)
            for maximum, sums in zip(partials.maxima, partials.weighted_sums, strict=False):
                factor = torch.exp2((0.0 if layout.bounded else maximum) - finite(lse))[:, None]
                mean += torch.where(factor > 0, sums * factor, 0.0)
            mean = layout.unsort(mean.masked_fill(self._ignored[:, None], 0.0))
        return DenominatorPartial(layout.unsort(lse / LOG2_E), mean)

    def positives(self, lse: Tensor) -> PositivesPartial:
        layout = self._layout
        with on_device(layout.order.device):
            sums = positives_pass(layout, (lse * LOG2_E)[layout.order])
        count = self._sum_splits(sums.counts).to(torch.int64)
        inverse = inverse_or_zero(count, torch.float32)
        losses = self._sum_splits(sums.losses) * (layout.positives_limit * inverse) / LOG2_E
        weight = torch.zeros_like(losses)
        if layout.problem.denominator == "negatives":
            weight = self._sum_splits(sums.weights) * inverse
        gradient = None
        if layout.problem.want_gradient:
            gradient = layout.unsort(self._sum_splits(sums.positive_sums) * inverse[:, None])
        count, losses, weight = map(layout.unsort, (count, losses, weight))
        return PositivesPartial(count, losses, weight, gradient)

    def _sum_splits(self, partials: Tensor) -> Tensor:
        ignored = self._ignored.view(-1, *[1] * (partials.ndim - 2))
        return partials.sum(dim=0, dtype=partials.dtype).masked_fill(ignored, 0)
