"""The tiled and the fused form, differentiable once: the forward makes the anchors' gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks
from pixcontrast._equation.coefficients import AnchorStatistics
from pixcontrast._equation.operators import (
    entries_gradient_operator,
    losses_operator,
    sharded_losses_operator,
)
from pixcontrast._equation.problem import Problem
from pixcontrast.mining import Thresholds


def tiled_losses(problem: Problem) -> tuple[Tensor, Tensor]:
    """(M,) losses, 0 without a positive, and (M,) whether the anchor has a positive."""
    return _losses(problem, fused=False)


def fused_losses(problem: Problem) -> tuple[Tensor, Tensor]:
    """As `tiled_losses`, by Triton's kernels."""
    return _losses(problem, fused=True)


def sharded_losses(
    problem: Problem,
    ranks: Ranks,
    shard_entries: Sequence[Tensor],
    shard_labels: Sequence[Tensor],
    *,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tiled_losses`, over every rank's shard too, and how many entries all shards hold."""
    _refuse_transforms()
    losses, has_positive, *_, held = sharded_losses_operator(
        [entries.detach() for entries in shard_entries],
        shard_labels,
        ranks.name,
        *_taken_apart(problem, fused=fused),
    )
    return losses, has_positive, held


def _losses(problem: Problem, *, fused: bool) -> tuple[Tensor, Tensor]:
    _refuse_transforms()
    losses, has_positive, *_ = losses_operator(*_taken_apart(problem, fused=fused))
    return losses, has_positive


def _taken_apart(problem: Problem, *, fused: bool) -> tuple[Any, ...]:
    """A problem as an operator takes it."""
    others = [piece for piece in problem.pieces if not piece.is_anchors]
    mining = problem.mining
    return (
        problem.anchors,
        problem.labels,
        [piece.entries for piece in others],
        [piece.labels for piece in others],
        [piece.is_anchors for piece in problem.pieces],
        # Decided here: inside an operator nobody knows whether grad mode is on.
        torch.is_grad_enabled() and problem.anchors.requires_grad,
        problem.seed,
        problem.temperature,
        problem.denominator,
        problem.product_dtype,
        problem.unit_length,
        fused,
        None if mining is None else mining.strategy,
        1.0 if mining is None else mining.ratio,
        None if mining is None else mining.num_negatives,
        None if mining is None else mining.num_positives,
        problem.first_row,
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    anchors, labels, entries, entry_labels, is_anchors, want_gradient, seed, *options = inputs
    strategy = options[5]
    by_other = [piece.requires_grad for piece in entries]
    others = iter(by_other)
    ctx.wanted = [want_gradient if own else next(others) for own in is_anchors]
    ctx.is_anchors, ctx.options, ctx.num_others = list(is_anchors), options, len(entries)
    ctx.want_gradient = want_gradient
    # Of a bank no vector is kept: its update in place would break the graph. A selection is made
    # again from what was numbered through, so there every label counts.
    nothing = anchors.new_empty(0, anchors.shape[1])
    kept = [e if want else nothing for e, want in zip(entries, by_other, strict=True)]
    kept_labels = [
        e if want or strategy is not None else labels[:0]
        for e, want in zip(entry_labels, by_other, strict=True)
    ]
    _, _, gradient, *details = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(anchors, labels, gradient, seed, *details, *kept, *kept_labels)


def _differentiate(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    anchors, labels, gradient, seed, *saved = ctx.saved_tensors
    statistics = saved[: len(AnchorStatistics._fields)]
    thresholds = saved[len(statistics) :][: len(Thresholds._fields)]
    kept = saved[len(statistics) + len(thresholds) :][: ctx.num_others]
    kept_labels = saved[len(saved) - ctx.num_others :]

    found: Sequence[Tensor] = ()
    if any(ctx.wanted):
        found = entries_gradient_operator(
            upstream,
            anchors,
            labels,
            kept,
            kept_labels,
            ctx.is_anchors,
            ctx.wanted,
            statistics,
            thresholds,
            seed,
            *ctx.options,
        )
    by_anchors = None
    if ctx.want_gradient:
        # In its own dtype at the very end: both roles of an anchor meet before, and a row that
        # was scaled and cast early would be mostly subnormal in float16.
        by_anchors = gradient * upstream[:, None]
    by_entries: list[Tensor | None] = []
    of_pieces = iter(found)
    for own, want in zip(ctx.is_anchors, ctx.wanted, strict=True):
        of_piece = next(of_pieces) if want and found else None
        if not own:
            by_entries.append(_cast(of_piece, kept[len(by_entries)]))
        elif by_anchors is not None and of_piece is not None:
            by_anchors = by_anchors + of_piece
    no_labels, no_options = [None] * ctx.num_others, [None] * (2 + len(ctx.options))
    # An empty list of flags is taken for a list of tensors.
    no_flags: list[None] | None = None if ctx.is_anchors else []
    sources = (upstream, anchors, *kept)
    by_anchors = _once(_cast(by_anchors, anchors), sources)
    by_entries = [_once(by_entry, sources) for by_entry in by_entries]
    return by_anchors, None, by_entries, no_labels, no_flags, *no_options


def _save_sharded(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    shard_entries, _, _, *own_inputs = inputs
    *own_output, held = output
    _save(ctx, tuple(own_inputs), tuple(own_output))
    ctx.mark_non_differentiable(*own_output[1:], held)
    ctx.num_of_shard = len(shard_entries)


def _differentiate_sharded(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    # What a shard holds needs no gradient, and the anchors' was made in the forward: no messages.
    nothing = [None] * ctx.num_of_shard
    return nothing, nothing, None, *_differentiate(ctx, upstream)


losses_operator.register_autograd(_differentiate, setup_context=_save)
sharded_losses_operator.register_autograd(_differentiate_sharded, setup_context=_save_sharded)


def _cast(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)


def _once(gradient: Tensor | None, sources: tuple[Tensor, ...]) -> Tensor | None:
    """A gradient that may be used, but not differentiated, where create_graph asks for that."""
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    result: Tensor = _FirstDerivative.apply(gradient, *sources)  # type: ignore[no-untyped-call]
    return result


class _FirstDerivative(torch.autograd.Function):
    """Stands behind a gradient under create_graph.

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


def _refuse_transforms() -> None:
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            'info_nce: the transforms of torch.func need backend="dense"; the other backends make '
            "the gradient in the forward"
        )
