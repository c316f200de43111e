"""The tiled form as an operation of autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixcontrast._equation.coefficients import AnchorStatistics
from pixcontrast._equation.mined import mined_entries_gradient, mined_forward
from pixcontrast._equation.problem import Problem
from pixcontrast._equation.tiled import entries_gradient, tiled_forward
from pixcontrast.mining import Thresholds


def tiled_losses(problem: Problem) -> tuple[Tensor, Tensor]:
    """(M,) losses, 0 without a positive, and (M,) whether the anchor has a positive."""
    entries = [piece.entries for piece in problem.pieces]
    # Decided here: inside an operation needs_input_grad is true under no_grad as well.
    want_gradient = torch.is_grad_enabled() and problem.anchors.requires_grad
    losses, has_positive = _TiledLoss.apply(  # type: ignore[no-untyped-call]
        problem, want_gradient, problem.anchors, *entries
    )
    return losses, has_positive


class _TiledLoss(torch.autograd.Function):
    """`anchors` and `entries` repeat the problem's, for autograd to see.

    A piece that is the anchors themselves is then seen twice, and autograd adds up its
    gradients in both roles.
    """

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, want_gradient: bool, anchors: Tensor, *entries: Tensor
    ) -> tuple[Tensor, Tensor]:
        thresholds: Thresholds | tuple[()] = ()
        if problem.mining is None:
            result = tiled_forward(problem, want_gradient=want_gradient)
        else:
            result, thresholds = mined_forward(problem, want_gradient=want_gradient)
        ctx.mark_non_differentiable(result.has_positive)
        wanted = [piece_entries.requires_grad for piece_entries in entries]
        # Of a bank nothing is kept: its update in place would break the graph.
        kept = [e if want else None for e, want in zip(entries, wanted, strict=True)]
        ctx.problem = problem.without_vectors()
        ctx.wanted = wanted
        ctx.save_for_backward(anchors, result.gradient, *result.statistics, *thresholds, *kept)
        return result.losses, result.has_positive

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        upstream = upstreams[0]
        anchors, gradient, *saved = ctx.saved_tensors
        num_pieces = len(ctx.wanted)
        entries = saved[len(saved) - num_pieces :]
        statistics = AnchorStatistics(*saved[:3])
        thresholds = saved[3 : len(saved) - num_pieces]

        device = anchors.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            anchors_gradient = None
            if gradient is not None:
                # The gradient of each row is kept whole, and scaled down and cast last: cast
                # first, most float16 gradients would be subnormal.
                anchors_gradient = (gradient * upstream[:, None]).to(anchors.dtype)
            gradients: list[Tensor | None] = [None] * num_pieces
            if any(ctx.wanted):
                problem = ctx.problem.with_vectors(anchors, entries)
                if thresholds:
                    gradients = mined_entries_gradient(
                        problem, statistics, Thresholds(*thresholds), upstream, ctx.wanted
                    )
                else:
                    gradients = entries_gradient(problem, statistics, upstream, ctx.wanted)
            gradients = [
                None if g is None else g.to(e.dtype)
                for g, e in zip(gradients, entries, strict=True)
            ]
        results = [anchors_gradient, *gradients]
        if torch.is_grad_enabled():
            sources = (upstream, anchors, *(e for e in entries if e is not None))
            results = [g if g is None else _FirstDerivative.apply(g, *sources) for g in results]  # type: ignore[no-untyped-call]
        return None, None, *results


class _FirstDerivative(torch.autograd.Function):
    """Stands behind a gradient under create_graph: usable, but not to be differentiated.

    The gradient was made in the forward, so that autograd would take it for a constant and a
    gradient penalty would come out wrong without a word.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            'info_nce: a second derivative needs backend="dense"; the other backends make the '
            "gradient in the forward and cannot differentiate it again"
        )
