"""Run the tiled, fused or sharded form with autograd.

Compiled and traced code calls PyTorch operators, which are opaque to torch.compile, so that sizes
inside may depend on values. Their arguments are those of a `Problem`. In eager mode the wrappers of
an operator would take longer than the kernels of a small problem, so an autograd function calls the
same code. The forward computes the anchors' gradient, so both are differentiable once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixcontrast._info_nce.once_differentiable import once_differentiable, refuse_transforms
from pixcontrast._info_nce.problem import NUM_ARGUMENTS, SCHEMA, Problem, options_of
from pixcontrast._info_nce.results import AnchorStatistics, ForwardResult, Losses
from pixcontrast._info_nce.sharded import sharded_forward
from pixcontrast._info_nce.thresholds import Thresholds
from pixcontrast._info_nce.tiled.mined import mined_entries_gradient, mined_forward
from pixcontrast._info_nce.tiled.passes import tiled_entries_gradient, tiled_forward
from pixcontrast._tensors import without_autocast

_NUM_STATISTICS = len(AnchorStatistics._fields)
_NO_THRESHOLDS = len(Thresholds._fields) * (None,)
# Losses, has_positive, anchor gradient, statistics, thresholds, number of entries in all shards.
_NUM_OUTPUTS = 3 + _NUM_STATISTICS + len(_NO_THRESHOLDS) + 1


def compute_losses(problem: Problem) -> Losses:
    """Run the tiled, fused or sharded form of a problem, which is differentiable once."""
    refuse_transforms(problem)
    if problem.is_eager:
        tensors = problem.anchors, *problem.entries
        outputs = _EagerLosses.apply(problem, *tensors)  # type: ignore[no-untyped-call]
    else:
        outputs = losses_operator(*problem.arguments())
    losses, has_positive, *_, num_shard_entries = outputs
    return Losses(losses, has_positive, None if problem.group is None else num_shard_entries)


class _EagerLosses(torch.autograd.Function):
    """The operators without their wrappers, for a problem, its anchors and its entries."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        result, thresholds, num_shard_entries, ctx.layout = _forward(problem)
        selected = _NO_THRESHOLDS if thresholds is None else thresholds
        _save(ctx, problem, (result.anchor_gradient, *result.statistics, *selected))
        return result.losses, result.has_positive, num_shard_entries

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        compute = partial(_entries_gradient, layout=ctx.layout)
        # Release its memory. Another backward of the same graph computes it anew.
        ctx.layout = None
        by_anchors, by_entries = _gradients(ctx, upstream, compute)
        return None, by_anchors, *by_entries


@torch.library.custom_op(
    "pixcontrast::losses",
    mutates_args=(),
    schema=f"({SCHEMA}) -> ({', '.join(_NUM_OUTPUTS * ['Tensor'])})",
)
def losses_operator(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute the forward. Tensors that are not requested are returned without elements.

    Returns:
        The losses, has_positive, the anchors' gradient, the `AnchorStatistics`, the `Thresholds`
        and the number of entries in all shards.
    """
    problem = Problem.of_arguments(*arguments)
    result, thresholds, num_shard_entries, _ = _forward(problem)
    gradient = result.anchor_gradient
    # An operator must return distinct tensors.
    none = [result.losses.new_empty(0) for _ in range(1 + len(_NO_THRESHOLDS))]
    return (
        result.losses,
        result.has_positive,
        none[0] if gradient is None else gradient,
        *result.statistics,
        *(none[1:] if thresholds is None else thresholds),
        problem.labels.new_empty(0) if num_shard_entries is None else num_shard_entries,
    )


def _forward(
    problem: Problem,
) -> tuple[ForwardResult, Thresholds | None, Tensor | None, Any]:
    """Return what the operator does, and the layout of the fused form; None for what is unused."""
    layout = thresholds = num_shard_entries = None
    with without_autocast(problem.anchors.device):
        if problem.group is not None:
            result, thresholds, num_shard_entries = sharded_forward(problem)
        elif problem.form == "triton":
            from pixcontrast._info_nce.fused.passes import fused_forward

            result, thresholds, layout = fused_forward(problem)
        elif problem.negative_sampler is None:
            result = tiled_forward(problem)
        else:
            result, thresholds = mined_forward(problem)
    return result, thresholds, num_shard_entries, layout


@losses_operator.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    problem = Problem.of_arguments(*arguments)
    num_anchors = problem.labels.shape[0]
    losses = problem.anchors.new_empty(num_anchors, dtype=problem.compute_dtype)
    mined = problem.negative_sampler is not None
    key = torch.int32 if mined else losses.dtype
    return (
        losses,
        losses.new_empty(num_anchors, dtype=torch.bool),
        losses.new_empty(problem.anchors.shape if problem.has_forward_gradient else (0,)),
        *(losses.new_empty(num_anchors, 1) for _ in range(_NUM_STATISTICS)),
        *(
            losses.new_empty((num_anchors, 1) if mined else (0,), dtype=dtype)
            for dtype in (losses.dtype, key, losses.dtype, key)
        ),
        problem.labels.new_empty((0,) if problem.group is None else ()),
    )


@torch.library.custom_op(
    "pixcontrast::entries_gradient",
    mutates_args=(),
    schema=(
        "(Tensor upstream, bool[] wanted, Tensor[] statistics, Tensor[] thresholds, "
        f"{SCHEMA}) -> Tensor[]"
    ),
)
def entries_gradient_operator(
    upstream: Tensor,
    wanted: Sequence[bool],
    statistics: Sequence[Tensor],
    thresholds: Sequence[Tensor],
    *arguments: Any,
) -> list[Tensor]:
    """Compute Σ_i g_i ∂L_i/∂k_j for the `wanted` tensors, in `Problem.entries_gradient_dtype`.

    The entries of the others are not read; with a negative sampler, their labels are.
    """
    problem = Problem.of_arguments(*arguments)
    return _entries_gradient(problem, upstream, wanted, statistics, thresholds)


@torch.no_grad()  # grad mode is on in a backward under create_graph
def _entries_gradient(
    problem: Problem,
    upstream: Tensor,
    wanted: Sequence[bool],
    statistics: Sequence[Tensor],
    thresholds: Sequence[Tensor],
    layout: Any = None,
) -> list[Tensor]:
    known, selected, want = AnchorStatistics(*statistics), Thresholds(*thresholds), list(wanted)
    with without_autocast(problem.anchors.device):
        if problem.form == "triton":
            from pixcontrast._info_nce.fused.passes import fused_entries_gradient

            gradients = fused_entries_gradient(problem, known, selected, upstream, want, layout)
        elif problem.negative_sampler is None:
            gradients = tiled_entries_gradient(problem, known, upstream, want)
        else:
            gradients = mined_entries_gradient(problem, known, selected, upstream, want)
    return [gradient for gradient in gradients if gradient is not None]


@entries_gradient_operator.register_fake
def _(
    upstream: Tensor,
    wanted: Sequence[bool],
    statistics: Sequence[Tensor],
    thresholds: Sequence[Tensor],
    *arguments: Any,
) -> list[Tensor]:
    problem = Problem.of_arguments(*arguments)
    return [
        tensor.entries.new_empty(tensor.entries.shape, dtype=problem.entries_gradient_dtype)
        for tensor, want in zip(problem.contrast, wanted, strict=True)
        if want
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    _save(ctx, Problem.of_arguments(*inputs), output[2:-1])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Any, ...]:
    def compute(problem: Problem, *arguments: Any) -> list[Tensor]:
        found: list[Tensor] = entries_gradient_operator(*arguments, *problem.arguments())
        return found

    by_anchors, by_entries = _gradients(ctx, upstream, compute)
    gradients: tuple[Any, ...] = (
        by_anchors,
        *(None, None),  # labels and seed
        by_entries,
        len(by_entries) * [None],
        *(ctx.num_shards * [None], ctx.num_shards * [None]),
        # PyTorch interprets an empty list of flags as a list of tensors.
        None if ctx.wanted else [],
    )
    return *gradients, *(NUM_ARGUMENTS - len(gradients)) * [None]


losses_operator.register_autograd(_backward, setup_context=_setup_context)


def _save(ctx: Any, problem: Problem, computed: tuple[Tensor | None, ...]) -> None:
    """Save what `_gradients` needs: the problem, the anchors' gradient, statistics, thresholds."""
    # Only the losses have a gradient: create no zeros for the other outputs.
    ctx.set_materialize_grads(False)
    needs_gradient = [entries.requires_grad for entries in problem.entries]
    others = iter(needs_gradient)
    ctx.wanted = [problem.want_gradient if own else next(others) for own in problem.is_anchors]
    # Entries without a gradient are not saved, because autograd raises if a saved bank is updated
    # in place. With a negative sampler every label is saved, because ids count all entries.
    # Their dtype is kept: the kernels of the backward choose the tiles of the forward by it.
    no_labels = problem.labels[:0]
    entries = [
        e if need else e.new_empty(0, e.shape[1])
        for e, need in zip(problem.entries, needs_gradient, strict=True)
    ]
    entry_labels = [
        labels if need or problem.negative_sampler is not None else no_labels
        for labels, need in zip(problem.entry_labels, needs_gradient, strict=True)
    ]
    own = problem.anchors, problem.labels, problem.seed
    ctx.save_for_backward(*own, *computed, *entries, *entry_labels)
    ctx.num_entries, ctx.num_shards = len(entries), len(problem.shard_entries)
    ctx.options = options_of(problem)


def _gradients(
    ctx: Any, upstream: Tensor | None, entries_gradient: Callable[..., Sequence[Tensor]]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradient of the anchors, and that of each contrast tensor that is not them."""
    anchors, labels, seed, gradient, *saved = ctx.saved_tensors
    num_computed = len(saved) - 2 * ctx.num_entries
    computed, entries = saved[:num_computed], saved[num_computed:][: ctx.num_entries]
    entry_labels = saved[num_computed + ctx.num_entries :]
    problem = Problem(anchors, labels, seed, entries, entry_labels, [], [], *ctx.options)
    from_entries: Sequence[Tensor] = ()
    by_anchors = None
    if upstream is not None:
        if any(ctx.wanted):
            statistics, thresholds = computed[:_NUM_STATISTICS], computed[_NUM_STATISTICS:]
            from_entries = entries_gradient(problem, upstream, ctx.wanted, statistics, thresholds)
        if problem.has_forward_gradient:
            # Add the gradients of both roles of an anchor before the conversion to its dtype. In
            # float16 most components of each would be subnormal.
            by_anchors = gradient * upstream.unsqueeze(1)
    by_entries: list[Tensor | None] = []
    remaining = iter(from_entries)
    for own, want in zip(problem.is_anchors, ctx.wanted, strict=True):
        by_tensor = next(remaining, None) if want else None
        if not own:
            by_entries.append(_cast(by_tensor, entries[len(by_entries)]))
        elif by_tensor is not None:
            by_anchors = by_tensor if by_anchors is None else by_anchors + by_tensor
    sources = (upstream, anchors, *entries)
    return (
        once_differentiable(_cast(by_anchors, anchors), sources),
        [once_differentiable(by_entry, sources) for by_entry in by_entries],
    )


def _cast(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(like.dtype)
