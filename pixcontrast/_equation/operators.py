"""The tiled and the fused form as operators of PyTorch, opaque to torch.compile.

Tensors and plain values go in and out of an operator, so that a `Problem` is taken apart outside
and put together again here. Inside, sizes may depend on values: what takes no part is left out
before the first product. How the operators are differentiated is in `autograd.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pixcontrast._distributed import ranks_named
from pixcontrast._dtypes import without_autocast
from pixcontrast._equation.coefficients import AnchorStatistics
from pixcontrast._equation.mined import mined_entries_gradient, mined_forward
from pixcontrast._equation.parts import Forward
from pixcontrast._equation.problem import Denominator, Problem, compute_dtype, numbered
from pixcontrast._equation.sharded import sharded_forward
from pixcontrast._equation.tiled import entries_gradient, tiled_forward
from pixcontrast.mining import HardNegativeSampler, Strategy, Thresholds

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("pixcontrast::losses", mutates_args=())
def losses_operator(
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    want_gradient: bool,
    seed: Tensor | None,
    temperature: float,
    denominator: str,
    product_dtype: torch.dtype,
    unit_length: bool,
    fused: bool,
    strategy: str | None,
    ratio: float,
    num_negatives: int | None,
    num_positives: int | None,
    first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses, has_positive, gradient, statistics, thresholds; without elements where not made.

    `entries` are those of the pieces that are not the anchors themselves. `fused` says by which
    form; the fused one leaves the anchors' gradient through themselves to the backward.
    """
    # fmt: off
    problem = _assemble(
        anchors, labels, entries, entry_labels, is_anchors, seed, temperature, denominator,
        product_dtype, unit_length, strategy, ratio, num_negatives, num_positives, first_row,
    )
    # fmt: on
    with without_autocast(anchors.device):
        if fused:
            from pixcontrast._equation.fused import fused_forward

            result, thresholds = fused_forward(problem, want_gradient=want_gradient)
        elif problem.mining is None:
            result, thresholds = tiled_forward(problem, want_gradient=want_gradient), None
        else:
            result, thresholds = mined_forward(problem, want_gradient=want_gradient)
    return _results(result, thresholds)


def _results(result: Forward, thresholds: Thresholds | None) -> Results:
    """What an operator gives back: it has no None, nor a tensor twice."""
    if thresholds is None:
        thresholds = Thresholds(*(result.losses.new_empty(0) for _ in Thresholds._fields))
    gradient = result.losses.new_empty(0) if result.gradient is None else result.gradient
    return result.losses, result.has_positive, gradient, *result.statistics, *thresholds


@losses_operator.register_fake
def _(
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    want_gradient: bool,
    seed: Tensor | None,
    temperature: float,
    denominator: str,
    product_dtype: torch.dtype,
    unit_length: bool,
    fused: bool,
    strategy: str | None,
    *_: Any,
) -> tuple[Tensor, ...]:
    return _like_results(anchors, labels, want_gradient, strategy)


def _like_results(
    anchors: Tensor, labels: Tensor, want_gradient: bool, strategy: str | None
) -> Results:
    """Tensors of the shapes and dtypes of `_results`."""
    num_anchors = labels.shape[0]
    losses = anchors.new_empty(num_anchors, dtype=compute_dtype(anchors))
    shape = (0,) if strategy is None else (num_anchors, 1)
    key_dtype = losses.dtype if strategy is None else torch.int32
    logits, more_logits = (losses.new_empty(shape) for _ in range(2))
    keys, more_keys = (losses.new_empty(shape, dtype=key_dtype) for _ in range(2))
    return (
        losses,
        losses.new_empty(num_anchors, dtype=torch.bool),
        losses.new_empty(anchors.shape if want_gradient else 0),
        losses.new_empty(num_anchors, 1),
        losses.new_empty(num_anchors, 1),
        losses.new_empty(num_anchors, 1),
        logits,
        keys,
        more_logits,
        more_keys,
    )


@torch.library.custom_op("pixcontrast::sharded_losses", mutates_args=())
def sharded_losses_operator(
    shard_entries: Sequence[Tensor],
    shard_labels: Sequence[Tensor],
    group: str,
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    want_gradient: bool,
    seed: Tensor | None,
    temperature: float,
    denominator: str,
    product_dtype: torch.dtype,
    unit_length: bool,
    fused: bool,
    strategy: str | None,
    ratio: float,
    num_negatives: int | None,
    num_positives: int | None,
    first_row: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `losses_operator`, over this rank's shard and those of the others in the group too.

    Beside its results comes the number of entries that all shards hold.
    """
    # fmt: off
    problem = _assemble(
        anchors, labels, entries, entry_labels, is_anchors, seed, temperature, denominator,
        product_dtype, unit_length, strategy, ratio, num_negatives, num_positives, first_row,
    )
    # fmt: on
    with without_autocast(anchors.device):
        result, thresholds, held = sharded_forward(
            problem,
            list(zip(shard_entries, shard_labels, strict=True)),
            ranks_named(group),
            want_gradient=want_gradient,
            fused=fused,
        )
    return *_results(result, thresholds), held


@sharded_losses_operator.register_fake
def _(
    shard_entries: Sequence[Tensor],
    shard_labels: Sequence[Tensor],
    group: str,
    anchors: Tensor,
    labels: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return *_like_results(anchors, labels, rest[3], rest[-5]), labels.new_empty(())


@torch.library.custom_op("pixcontrast::entries_gradient", mutates_args=())
def entries_gradient_operator(
    upstream: Tensor,
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    wanted: Sequence[bool],
    statistics: Sequence[Tensor],
    thresholds: Sequence[Tensor],
    seed: Tensor | None,
    temperature: float,
    denominator: str,
    product_dtype: torch.dtype,
    unit_length: bool,
    fused: bool,
    strategy: str | None,
    ratio: float,
    num_negatives: int | None,
    num_positives: int | None,
    first_row: int,
) -> list[Tensor]:
    """Σ_i g_i ∂L_i/∂k_j for the pieces that are `wanted`, in the dtype that accumulates.

    Of the others nothing is looked at; under mining, their labels.
    """
    # fmt: off
    problem = _assemble(
        anchors, labels, entries, entry_labels, is_anchors, seed, temperature, denominator,
        product_dtype, unit_length, strategy, ratio, num_negatives, num_positives, first_row,
    )
    # fmt: on
    known, want = AnchorStatistics(*statistics), list(wanted)
    with without_autocast(anchors.device):
        found = Thresholds(*thresholds)
        if fused:
            from pixcontrast._equation.fused import fused_entries_gradient

            gradients = fused_entries_gradient(problem, known, found, upstream, want)
        elif problem.mining is None:
            gradients = entries_gradient(problem, known, upstream, want)
        else:
            gradients = mined_entries_gradient(problem, known, found, upstream, want)
    return [gradient for gradient in gradients if gradient is not None]


@entries_gradient_operator.register_fake
def _(
    upstream: Tensor,
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    wanted: Sequence[bool],
    *_: Any,
) -> list[Tensor]:
    others = iter(entries)
    pieces = [anchors if own else next(others) for own in is_anchors]
    return [
        vectors.new_empty(vectors.shape, dtype=compute_dtype(anchors))
        for vectors, want in zip(pieces, wanted, strict=True)
        if want
    ]


def _assemble(
    anchors: Tensor,
    labels: Tensor,
    entries: Sequence[Tensor],
    entry_labels: Sequence[Tensor],
    is_anchors: Sequence[bool],
    seed: Tensor | None,
    temperature: float,
    denominator: str,
    product_dtype: torch.dtype,
    unit_length: bool,
    strategy: str | None,
    ratio: float,
    num_negatives: int | None,
    num_positives: int | None,
    first_row: int,
) -> Problem:
    others = iter(zip(entries, entry_labels, strict=True))
    pieces = numbered((*((anchors, labels) if own else next(others)), own) for own in is_anchors)
    mining = None
    if strategy is not None:
        mining = HardNegativeSampler(
            strategy=cast(Strategy, strategy),
            ratio=ratio,
            num_negatives=num_negatives,
            num_positives=num_positives,
        )
    return Problem(
        anchors=anchors,
        labels=labels,
        pieces=pieces,
        temperature=temperature,
        denominator=cast(Denominator, denominator),
        mining=mining,
        seed=seed,
        product_dtype=product_dtype,
        compute_dtype=compute_dtype(anchors),
        unit_length=unit_length,
        first_row=first_row,
    )
