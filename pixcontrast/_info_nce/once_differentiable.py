"""Refuse second derivatives, `torch.func` and forward-mode of losses that are differentiable once.

These losses compute their gradient in the forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pixcontrast._info_nce.problem import Problem


def refuse_transforms(problem: Problem) -> None:
    """Raise if a transform of `torch.func` or forward-mode differentiation is active."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            'info_nce: the transforms of torch.func need backend="dense"; the other backends '
            "compute the gradient in the forward"
        )
    if forward_ad._current_level >= 0 and any(map(_is_dual, (problem.anchors, *problem.entries))):
        raise RuntimeError(
            'info_nce: forward-mode differentiation needs backend="dense"; the other backends '
            "compute the gradient in the forward"
        )


def _is_dual(tensor: Tensor) -> bool:
    tangent = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent is not None


def once_differentiable(
    gradient: Tensor | None, sources: tuple[Tensor | None, ...]
) -> Tensor | None:
    """Under create_graph, return a gradient that raises if it is differentiated."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    result: Tensor = _FirstDerivative.apply(gradient, *sources)  # type: ignore[no-untyped-call]
    return result


class _FirstDerivative(torch.autograd.Function):
    """Makes a gradient under create_graph depend on its sources, and refuses to differentiate it.

    Autograd would treat a gradient that the forward computes as a constant, so the value of a
    gradient penalty would be silently wrong.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            'info_nce: a second derivative needs backend="dense"; the other backends compute the '
            "gradient in the forward and cannot differentiate it again"
        )
