"""The arguments that every launch of the fused form shares."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.layout import Layout, SurveyedTensor, padded_dim
from pixcontrast._info_nce.problem import LOG2_E
from pixcontrast._info_nce.thresholds import Thresholds


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a device current, because Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def anchor_arguments(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sorted anchors, their classes, and the number of valid ones."""
    anchors = layout.anchors
    return anchors.vectors, anchors.survey.classes, anchors.num_valid


def entry_arguments(tensor: SurveyedTensor, layout: Layout) -> tuple[Any, ...]:
    """Return a contrast tensor with its classes, size and strides, and the operands' limit."""
    largest = torch.finfo(layout.problem.product_dtype).max
    return (tensor.entries, tensor.survey.classes, len(tensor), *tensor.entries.stride(), largest)


def mining_arguments(
    layout: Layout, tensor: SurveyedTensor, thresholds: Thresholds | None
) -> tuple[Tensor, ...]:
    """Return the thresholds of the sorted anchors, and both parts of the random keys."""
    unused = layout.anchors.survey.classes
    given = (unused,) * 4 if thresholds is None else tuple(thresholds)
    return *given, layout.anchors.bits, tensor.bits


def scale_and_limit(layout: Layout) -> tuple[float, float]:
    """Return log2(e)/τ and the limit of similarities, to the base 2."""
    problem = layout.problem
    largest = torch.finfo(torch.float32).max
    return min(problem.inverse_temperature * LOG2_E, largest), problem.logit_limit * LOG2_E


def positives_limit(layout: Layout) -> float:
    """Return a power of two that is at least the number of positives of any anchor."""
    total = sum(len(tensor) for tensor in layout.contrast)
    return float(triton.next_power_of_2(max(1, total)))


def constants_of(
    layout: Layout, tensor: SurveyedTensor, configuration: Configuration
) -> dict[str, Any]:
    """Return the compile-time constants of every kernel that multiplies."""
    problem = layout.problem
    dim = problem.anchors.shape[1]
    largest = torch.finfo(problem.product_dtype).max
    return {
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": configuration.rows,
        "BLOCK_N": configuration.columns,
        "IS_ANCHORS": tensor.is_anchors,
        "BOUNDED": layout.bounded,
        "NARROWS": torch.finfo(tensor.entries.dtype).max > largest,
        "PRECISION": layout.precision,
        "WIDEN": layout.interpreted,
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
    }


def equation_constants(layout: Layout) -> dict[str, bool]:
    """Return the compile-time constants of the kernels that evaluate the equation."""
    problem = layout.problem
    return {
        "ALL": problem.denominator == "all",
        "MINED": problem.negative_sampler is not None,
    }
