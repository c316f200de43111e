"""The equation in its fused form: Triton kernels that never write a similarity to memory.

The passes are those of the tiled form, with other tiles: `denominator_pass` makes partial results
of Z and o, `positives_pass` visits the positives, `finish` merges both into losses and the
gradient of the anchors, and `entries_pass` makes the gradient of entries in the backward. Where
the anchors stand against themselves the backward makes both of their roles at once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast._info_nce.fused.passes import (
    denominator_pass,
    entries_pass,
    finish,
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
    """Losses and, where wanted, the anchors' gradient through all entries but themselves.

    Z among the statistics, and the thresholds under mining (else None), are to the base 2.
    """
    result = allocate_forward(problem, want_gradient=want_gradient)
    met = None if problem.negative_sampler is None else allocate_thresholds(problem)
    num_entries = sum(piece.labels.numel() for piece in problem.contrast)
    if problem.labels.numel() == 0 or num_entries == 0:
        return result, met
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        thresholds = None if problem.negative_sampler is None else select_thresholds(layout)
        partials = denominator_pass(layout, thresholds, want_gradient=want_gradient)
        sums = positives_pass(layout, partials, thresholds, want_gradient=want_gradient)
        finish(layout, partials, sums, result)
        if met is not None and thresholds is not None:
            for column, values in zip(met, thresholds, strict=True):
                column[layout.rows.order] = values
    return result, met


def fused_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds,
    upstream: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """Σ_i g_i ∂L_i/∂k_j for the entries of the pieces that want it, else None.

    For the anchors themselves, g_i ∂L_i/∂a_i through them is in it too.
    """
    if problem.labels.numel() == 0:
        return allocate_entries_gradient(problem, wanted)
    results: list[Tensor | None] = [None] * len(wanted)
    with on_device(problem.anchors.device):
        layout = lay_out(problem)
        order = layout.rows.order
        ordered = AnchorStatistics(*(column[order] for column in statistics))
        met = None
        if problem.negative_sampler is not None:
            met = Thresholds(*(column[order].contiguous() for column in thresholds))
        for number, piece in enumerate(layout.pieces):
            if not wanted[number]:
                continue
            gradient = entries_pass(layout, piece, ordered, met, upstream[order])
            if piece.is_anchors:
                in_order, gradient = gradient, torch.empty_like(gradient)
                gradient[order] = in_order
            results[number] = gradient
    return results


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are launched on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
