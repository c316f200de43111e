"""The tiled form as an operation of autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast._autocast import without_autocast
from pixcontrast._equation.coefficients import AnchorStatistics
from pixcontrast._equation.mined import mined_entries_gradient, mined_forward
from pixcontrast._equation.problem import Problem
from pixcontrast._equation.tiled import entries_gradient, tiled_forward
from pixcontrast.mining import Thresholds


def tiled_losses(problem: Problem) -> tuple[Tensor, Tensor]:
    """(M,) losses, 0 without a positive, and (M,) whether the anchor has a positive."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            'info_nce: the transforms of torch.func need backend="dense"; the other backends make '
            "the gradient in the forward"
        )
    others = [piece.entries for piece in problem.pieces if not piece.is_anchors]
    # Decided here: inside an operation needs_input_grad is true under no_grad as well.
    want_gradient = torch.is_grad_enabled() and problem.anchors.requires_grad
    losses, has_positive = _TiledLoss.apply(  # type: ignore[no-untyped-call]
        problem, want_gradient, problem.anchors, *others
    )
    return losses, has_positive


class _TiledLoss(torch.autograd.Function):
    """`anchors` and `others`, the entries that are not the anchors, repeat those of the problem.

    They are what autograd sees.
    """

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, want_gradient: bool, anchors: Tensor, *others: Tensor
    ) -> tuple[Tensor, Tensor]:
        thresholds: Thresholds | tuple[()] = ()
        if problem.mining is None:
            result = tiled_forward(problem, want_gradient=want_gradient)
        else:
            result, thresholds = mined_forward(problem, want_gradient=want_gradient)
        ctx.mark_non_differentiable(result.has_positive)
        # Of a bank nothing is kept: its update in place would break the graph.
        kept = [entries if entries.requires_grad else None for entries in others]
        ctx.problem = problem.without_vectors()
        ctx.num_kept = len(kept)
        ctx.save_for_backward(anchors, result.gradient, *result.statistics, *thresholds, *kept)
        return result.losses, result.has_positive

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        upstream = upstreams[0]
        anchors, gradient, *saved = ctx.saved_tensors
        kept = saved[len(saved) - ctx.num_kept :]
        statistics = AnchorStatistics(*saved[:3])
        thresholds = saved[3 : len(saved) - ctx.num_kept]

        with torch.no_grad(), without_autocast(anchors.device):
            problem, wanted = _with_kept(ctx.problem, anchors, kept, gradient is not None)
            by_piece: list[Tensor | None] = [None] * len(wanted)
            if any(wanted) and thresholds:
                by_piece = mined_entries_gradient(
                    problem, statistics, Thresholds(*thresholds), upstream, wanted
                )
            elif any(wanted):
                by_piece = entries_gradient(problem, statistics, upstream, wanted)

            by_others: list[Tensor | None] = []
            # In its own dtype at the very end: both roles of an anchor meet before, and a row
            # that was scaled and cast early would be mostly subnormal in float16.
            by_anchors = None if gradient is None else gradient * upstream[:, None]
            for piece, by_entries in zip(problem.pieces, by_piece, strict=True):
                if not piece.is_anchors:
                    by_others.append(_cast(by_entries, piece.entries))
                elif by_anchors is not None and by_entries is not None:
                    by_anchors += by_entries
            results = [_cast(by_anchors, anchors), *by_others]
        if torch.is_grad_enabled():
            sources = (upstream, anchors, *(entries for entries in kept if entries is not None))
            results = [g if g is None else _FirstDerivative.apply(g, *sources) for g in results]  # type: ignore[no-untyped-call]
        return None, None, *results


def _with_kept(
    problem: Problem, anchors: Tensor, kept: Sequence[Tensor | None], want_anchors: bool
) -> tuple[Problem, list[bool]]:
    """The problem about what was saved of it, and which pieces want a gradient."""
    others = iter(kept)
    entries = [anchors if piece.is_anchors else next(others) for piece in problem.pieces]
    wanted = [
        want_anchors if piece.is_anchors else vectors is not None
        for piece, vectors in zip(problem.pieces, entries, strict=True)
    ]
    return problem.with_vectors(anchors, entries), wanted


def _cast(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)


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
