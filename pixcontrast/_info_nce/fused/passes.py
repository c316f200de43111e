"""The fused form: Triton kernels that never write a similarity to memory.

The passes are those of the tiled form with other tiles. `denominator_pass` computes partial results
of Z and o, `positives_pass` visits the positives, and `merge` combines both into the losses and the
gradient of the anchors. The backward computes the gradient of the entries, and that of the anchors
against themselves in both of their roles.

A partial result is a tensor (S, M) or (W, M, D) of the numbers or vectors of S splits, by the name
of the kernels' argument. The W ≤ S splits whose gradient the forward computes come first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.derivative import finite, inverse_or_zero
from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.kernels.merge import lse_kernel, merge_kernel
from pixcontrast._info_nce.fused.kernels.positives import positives_kernel
from pixcontrast._info_nce.fused.launch import (
    has_both_roles,
    launch,
    launch_splits,
    num_splits_for,
    on_device,
    plan_splits,
)
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor, lay_out
from pixcontrast._info_nce.fused.thresholds import select_thresholds
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    PositivesPartial,
    allocate_entries_gradient,
    allocate_forward,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds

LSE_ROWS = 128
MERGED_ROWS, MERGED_COMPONENTS = 16, 64
"""Anchors and components of a program that merges partial results."""
Partials = dict[str, Tensor]


def fused_forward(
    problem: Problem, *, want_gradient: bool
) -> tuple[ForwardResult, Thresholds | None]:
    """Compute the losses and, if requested, the gradient of the anchors.

    The gradient of the anchors through themselves as entries is left to the backward. Z in the
    statistics, and the thresholds of mining (None without), are to the base 2.
    """
    result = allocate_forward(problem, want_gradient=want_gradient)
    thresholds = None if problem.negative_sampler is None else allocate_thresholds(problem)
    num_entries = sum(tensor.labels.numel() for tensor in problem.contrast)
    if problem.labels.numel() == 0 or num_entries == 0:
        return result, thresholds
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        if problem.negative_sampler is not None and thresholds is not None:
            layout = replace(layout, thresholds=select_thresholds(layout, problem.negative_sampler))
            for column, values in zip(thresholds, layout.thresholds, strict=True):
                column[layout.order] = values
        partials = denominator_pass(layout, want_gradient=want_gradient)
        sums = positives_pass(layout, partials["lse"], want_gradient=want_gradient)
        merge(layout, partials, sums, result)
    return result, thresholds


def denominator_pass(layout: Layout, *, want_gradient: bool) -> Partials:
    """Compute partial results over every contrast tensor, and the Z (M,) that they merge to.

    `totals` are Σ exp2(s − maximum) and `weighted_sums` Σ exp2(s − maximum)·k. `maxima` are not
    written and taken as 0 if similarities are bounded. `lse` is Z to the base 2.
    """
    configuration = layout.configurations.denominator
    numbers = {"maxima": torch.float32, "totals": torch.float32}
    partials = _run_splits(
        denominator_kernel, layout, configuration, numbers, "weighted_sums", want_gradient
    )
    num_anchors = len(layout.anchors)
    partials["lse"] = layout.anchors.new_empty(num_anchors, dtype=torch.float32)
    grid = (triton.cdiv(num_anchors, LSE_ROWS),)
    num_splits = len(partials["totals"])
    launch(lse_kernel, grid, layout, **partials, num_splits=num_splits, BLOCK=LSE_ROWS)
    return partials


def positives_pass(layout: Layout, lse: Tensor, *, want_gradient: bool) -> Partials:
    """Compute the sums over the positives in every contrast tensor, given Z to the base 2."""
    configuration = layout.configurations.positives
    return _run_splits(
        positives_kernel,
        layout,
        configuration,
        {"counts": torch.int32, "losses": torch.float32, "weights": torch.float32},
        "positive_sums",
        want_gradient,
        lse=lse,
        shrink=1.0 / positives_limit(layout),
        TILES=layout.configurations.denominator.columns // configuration.columns,
    )


def positives_limit(layout: Layout) -> float:
    """Return a power of two that is at least the number of positives of any anchor."""
    total = sum(len(tensor) for tensor in layout.contrast)
    return float(triton.next_power_of_2(max(1, total)))


def _run_splits(
    kernel: Any,
    layout: Layout,
    configuration: Configuration,
    numbers: dict[str, torch.dtype],
    vectors: str,
    want_gradient: bool,
    **arguments: Any,
) -> Partials:
    plan = plan_splits(layout, configuration, want_gradient)
    num_splits = sum(splits.num_splits for splits in plan)
    num_weighted = sum(splits.num_splits for splits in plan if splits.weighted)
    like = layout.anchors
    partials = {
        name: like.new_empty(num_splits, len(like), dtype=dtype) for name, dtype in numbers.items()
    }
    partials[vectors] = like.new_empty(num_weighted, *like.shape, dtype=torch.float32)
    launch_splits(kernel, layout, configuration, plan, partials, **arguments)
    return partials


def merge(layout: Layout, partials: Partials, sums: Partials, result: ForwardResult) -> None:
    """Merge the partial results of both passes into `result`, in the caller's order."""
    num_anchors, dim = layout.anchors.shape
    gradient = result.anchor_gradient
    component_blocks = 1 if gradient is None else triton.cdiv(dim, MERGED_COMPONENTS)
    launch(
        merge_kernel,
        (triton.cdiv(num_anchors, MERGED_ROWS), component_blocks),
        layout,
        **partials,
        **sums,
        num_weighted=len(partials["weighted_sums"]),
        num_splits=len(sums["counts"]),
        num_sums=len(sums["positive_sums"]),
        out_losses=result.losses,
        out_has_positive=result.has_positive,
        **{f"out_{name}": column for name, column in result.statistics._asdict().items()},
        out_gradient=result.losses if gradient is None else gradient,
        expand=positives_limit(layout),
        BLOCK_M=MERGED_ROWS,
        BLOCK_D=MERGED_COMPONENTS,
        WEIGHTED=gradient is not None,
    )


def fused_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds | None,
    upstream: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """Compute Σ_i g_i ∂L_i/∂k_j for each requested contrast tensor, None for the others.

    For the anchors themselves, the result includes g_i ∂L_i/∂a_i through them.
    """
    if problem.labels.numel() == 0:
        return allocate_entries_gradient(problem, wanted)
    results: list[Tensor | None] = [None] * len(wanted)
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        order = layout.order
        if problem.negative_sampler is not None and thresholds is not None:
            thresholds = Thresholds(*(column[order].contiguous() for column in thresholds))
            layout = replace(layout, thresholds=thresholds)
        statistics, upstream = statistics.of(order), upstream[order]
        for index, tensor in enumerate(layout.contrast):
            if wanted[index]:
                gradient = entries_gradient_pass(layout, tensor, statistics, upstream)
                results[index] = _unsort(layout, gradient) if tensor.is_anchors else gradient
    return results


def entries_gradient_pass(
    layout: Layout, tensor: SurveyedTensor, statistics: AnchorStatistics, upstream: Tensor
) -> Tensor:
    """Compute the gradient (n, D) of a contrast tensor; of the anchors, in both of their roles."""
    configuration = layout.configurations.entries
    num_anchors, dim = layout.anchors.shape
    row_blocks = triton.cdiv(len(tensor), configuration.rows)
    anchor_blocks = triton.cdiv(num_anchors, configuration.columns)
    num_splits = num_splits_for(layout.num_processors, row_blocks, anchor_blocks)
    gradients = layout.anchors.new_empty(num_splits, len(tensor), dim, dtype=torch.float32)
    if len(tensor) > 0:
        launch(
            entries_gradient_kernel,
            (row_blocks, num_splits),
            layout,
            tensor,
            configuration,
            **statistics._asdict(),
            upstream=upstream,
            gradients=gradients,
            BOTH_ROLES=has_both_roles(layout, tensor),
            IN_FLOAT32=layout.problem.product_dtype == torch.float16,
        )
    return gradients[0] if num_splits == 1 else gradients.sum(dim=0)


class FusedPasses:
    """The passes over a subset of the contrast entries, see `results.Passes`.

    Several ranks merge their results, so operations over (M, D) take the place of `merge`. The
    backward computes the gradient of the anchors through themselves, as always in this form.
    """

    def __init__(self, problem: Problem) -> None:
        with on_device(problem.anchors.device):
            self._layout = lay_out(problem)
        # Rows of ignored anchors are not written and may contain NaN.
        self._ignored = self._layout.anchor_classes < 0

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        layout = self._layout
        with on_device(layout.anchors.device):
            partials = denominator_pass(layout, want_gradient=want_gradient)
        lse = partials["lse"].masked_fill(self._ignored, -torch.inf)
        mean = None
        if want_gradient:
            mean = torch.zeros_like(layout.anchors, dtype=torch.float32)
            for maximum, sums in zip(partials["maxima"], partials["weighted_sums"], strict=False):
                factor = torch.exp2((0.0 if layout.bounded else maximum) - finite(lse))[:, None]
                mean += torch.where(factor > 0, sums * factor, 0.0)
            mean = _unsort(layout, mean.masked_fill(self._ignored[:, None], 0.0))
        return DenominatorPartial(_unsort(layout, lse / LOG2_E), mean)

    def positives(self, lse: Tensor, *, want_gradient: bool) -> PositivesPartial:
        layout = self._layout
        with on_device(layout.anchors.device):
            sorted_lse = (lse * LOG2_E)[layout.order]
            sums = positives_pass(layout, sorted_lse, want_gradient=want_gradient)
        count = self._sum_splits(sums["counts"]).to(torch.int64)
        inverse = inverse_or_zero(count, torch.float32)
        losses = self._sum_splits(sums["losses"]) * (positives_limit(layout) * inverse) / LOG2_E
        weight = torch.zeros_like(losses)
        if layout.problem.denominator == "negatives":
            weight = self._sum_splits(sums["weights"]) * inverse
        gradient = None
        if want_gradient:
            gradient = _unsort(layout, self._sum_splits(sums["positive_sums"]) * inverse[:, None])
        count, losses, weight = (_unsort(layout, column) for column in (count, losses, weight))
        return PositivesPartial(count, losses, weight, gradient)

    def _sum_splits(self, partials: Tensor) -> Tensor:
        ignored = self._ignored.view(-1, *[1] * (partials.ndim - 2))
        return partials.sum(dim=0, dtype=partials.dtype).masked_fill(ignored, 0)


def _unsort(layout: Layout, values: Tensor) -> Tensor:
    result = torch.empty_like(values)
    result[layout.order] = values
    return result
