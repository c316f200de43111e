"""A few anchors against themselves: one kernel for the forward, and one for the backward.

Such a problem takes less time than the launches of the other passes. Anchors are not sorted, and
every similarity is masked.
"""

from __future__ import annotations

from torch import Tensor

from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configurations,
    small_configuration,
)
from pixcontrast._info_nce.fused.kernels.small import small_kernel
from pixcontrast._info_nce.fused.launch import (
    launch_entries_gradient,
    launch_tiles,
    on_device,
    padded_dim,
)
from pixcontrast._info_nce.fused.layout import IS_INTERPRETED, Layout, SurveyedTensor, Vectors
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import AnchorStatistics, ForwardResult, allocate_forward
from pixcontrast._triton import ceil_div

MAX_ANCHORS = 1024


def is_small(problem: Problem) -> bool:
    """Return whether this form computes a problem. It depends on sizes alone, not on values."""
    return problem.is_self_contrast and 0 < problem.labels.shape[0] <= MAX_ANCHORS


def small_forward(problem: Problem) -> tuple[ForwardResult, Layout]:
    """Compute the losses, as `fused_forward` does."""
    result = allocate_forward(problem, Tensor.new_empty)
    with on_device(result.losses.device):
        layout = _lay_out(problem)
        configuration = layout.configurations.denominator
        grid = (ceil_div(layout.num_anchors, configuration.rows),)
        limit = layout.positives_limit
        arguments = layout.anchors, layout.num_anchors, result, 1.0 / limit, limit
        launch_tiles(small_kernel, grid, layout, configuration, layout.contrast[0], arguments)
    return result, layout


def small_gradient(
    problem: Problem, statistics: AnchorStatistics, upstream: Tensor, layout: Layout | None
) -> Tensor:
    """Compute Σ_i g_i ∂L_i/∂a_j, in the dtype of the anchors."""
    with on_device(upstream.device):
        if layout is None:
            layout = _lay_out(problem)
        tensor = layout.contrast[0]
        return launch_entries_gradient(layout, tensor, statistics, upstream, num_splits=1)[0]


def _lay_out(problem: Problem) -> Layout:
    values = problem.saturate(problem.anchors.detach()).to(problem.product_dtype).contiguous()
    tile = small_configuration(padded_dim(values.shape[1]) * values.element_size())
    configurations = INTERPRETED if IS_INTERPRETED else Configurations(tile, tile, tile, tile)
    labels = problem.labels.contiguous()
    anchors = Vectors(values, labels, None)
    # This kernel compares labels, so there is no order and no survey. The layout reads only the
    # length and the device of the order.
    survey = labels.new_empty(0, 1)
    tensor = SurveyedTensor(anchors, is_anchors=True, survey=survey)
    return Layout(problem, configurations, anchors, labels, (tensor,))
