"""The fused form: Triton kernels that never write a similarity to memory.

The passes are those of the tiled form with other tiles. `denominator_pass` computes partial results
of Z and o, `positives_pass` visits the positives, and `merge` combines both into the losses and the
gradient of the anchors. The backward computes the gradient of the entries, and that of the anchors
against themselves in both of their roles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.launch import on_device
from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast._info_nce.fused.passes import (
    denominator_pass,
    entries_gradient_pass,
    merge,
    positives_pass,
)
from pixcontrast._info_nce.fused.thresholds import select_thresholds
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    ForwardResult,
    allocate_entries_gradient,
    allocate_forward,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds


def fused_forward(
    problem: Problem, *, want_gradient: bool
) -> tuple[ForwardResult, Thresholds | None]:
    """Compute the losses and, if requested, the gradient of the anchors.

    The gradient of the anchors through themselves as entries is left to the backward. Z in the
    statistics, and the thresholds of mining (None without), are to the base 2.
    """
    result = allocate_forward(problem, want_gradient=want_gradient)
    unsorted = None if problem.negative_sampler is None else allocate_thresholds(problem)
    num_entries = sum(tensor.labels.numel() for tensor in problem.contrast)
    if problem.labels.numel() == 0 or num_entries == 0:
        return result, unsorted
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        thresholds = None
        if problem.negative_sampler is not None:
            thresholds = select_thresholds(layout, problem.negative_sampler)
        partials = denominator_pass(layout, thresholds, want_gradient=want_gradient)
        sums = positives_pass(layout, partials["lse"], thresholds, want_gradient=want_gradient)
        merge(layout, partials, sums, result)
        if unsorted is not None and thresholds is not None:
            for column, values in zip(unsorted, thresholds, strict=True):
                column[layout.order] = values
    return result, unsorted


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
        sorted_statistics = statistics.of(order)
        sorted_thresholds = None
        if problem.negative_sampler is not None and thresholds is not None:
            sorted_thresholds = Thresholds(*(column[order].contiguous() for column in thresholds))
        for index, tensor in enumerate(layout.contrast):
            if not wanted[index]:
                continue
            gradient = entries_gradient_pass(
                layout, tensor, sorted_statistics, sorted_thresholds, upstream[order]
            )
            if tensor.is_anchors:
                sorted_gradient, gradient = gradient, torch.empty_like(gradient)
                gradient[order] = sorted_gradient
            results[index] = gradient
    return results
