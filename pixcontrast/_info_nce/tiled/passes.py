"""The equation in its tiled form: bounded memory, any device, the gradient made in the forward.

The negative side of the loss is an attention (queries are anchors, keys and values are entries),
and its output is the negative part of the anchors' gradient:

    τ · ∂L_i/∂a_i = w_i · o_i − 1/|P_i| Σ_p σ(Z_i − s_ip) k_p,    o_i = Σ_n softmax_n(s_i) k_n

`denominator_pass` makes Z and o, one tile at a time; `positives_pass` then visits the positives
alone and makes the loss, w and the rest. The gradient of the anchors in their role as anchors is
complete when the forward ends. Entries that require a gradient take one more pass in the
backward, `entries_gradient`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import AnchorStatistics, coefficients, pulls
from pixcontrast._info_nce.merge import Partial
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import (
    DenominatorPart,
    Forward,
    PositivesPart,
    complete,
    share_of,
)
from pixcontrast._info_nce.tiled.class_order import Arrangement, arrange_anchors, arrange_entries
from pixcontrast._info_nce.tiled.tiles import Tiling


def allocate_forward(problem: Problem, *, want_gradient: bool) -> Forward:
    """The results, made before any tile so that they lie together, as for M absent anchors."""
    like = problem.anchors.new_zeros(0, dtype=problem.compute_dtype)
    num_anchors = problem.labels.numel()
    return Forward(
        losses=like.new_zeros(num_anchors),
        has_positive=like.new_zeros(num_anchors, dtype=torch.bool),
        gradient=like.new_zeros(problem.anchors.shape) if want_gradient else None,
        statistics=AnchorStatistics(*(like.new_zeros(num_anchors, 1) for _ in range(3))),
    )


def tiled_forward(problem: Problem, *, want_gradient: bool) -> Forward:
    """Losses and, where wanted, the gradient of the anchors in their role as anchors."""
    if problem.labels.numel() == 0:
        return allocate_forward(problem, want_gradient=want_gradient)
    passes = TiledPasses(problem)
    denominator = passes.denominator(want_gradient=want_gradient)
    positives = passes.positives(denominator.log_sum, want_gradient=want_gradient)
    return complete(problem, denominator, positives)


class TiledPasses:
    """The two passes over the tiles of a problem; results are in the caller's order."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._anchors = arrange_anchors(problem)
        self._pieces = [arrange_entries(piece, problem) for piece in problem.pieces]
        self._tiling = Tiling(problem, self._anchors, self._pieces)
        self._places = self._anchors.places(slice(0, len(self._anchors)))

    def denominator(self, *, want_gradient: bool) -> DenominatorPart:
        partial = denominator_pass(self._tiling, want_gradient)
        return DenominatorPart(
            self._in_callers_order(partial.log_sum(), -torch.inf),
            self._in_callers_order(partial.mean()) if want_gradient else None,
        )

    def positives(self, log_sum: Tensor, *, want_gradient: bool) -> PositivesPart:
        count = _count_positives(self._problem, self._anchors, self._pieces)
        share = share_of(count, self._problem.compute_dtype)[:, None]
        losses, weight, pull = positives_pass(
            self._tiling, log_sum[self._places][:, None], share, self._problem, want_gradient
        )
        return PositivesPart(
            self._in_callers_order(count),
            self._in_callers_order(losses.squeeze(1)),
            self._in_callers_order(weight.squeeze(1)),
            None if pull is None else self._in_callers_order(pull),
        )

    def _in_callers_order(self, values: Tensor, absent: float = 0.0) -> Tensor:
        num_anchors = self._problem.labels.numel()
        result = values.new_full((num_anchors, *values.shape[1:]), absent)
        result[self._places] = values
        return result


def denominator_pass(tiling: Tiling, want_gradient: bool) -> Partial:
    """Z and o over N_i, or over everything but i itself for `denominator="all"`."""
    partial = Partial(tiling.rows, bounded=tiling.bounded, weighted=want_gradient)
    # Attention makes o whether it is wanted or not.
    for tile in tiling.in_denominator(attending=want_gradient):
        outside = tiling.outside_denominator(tile)
        if outside is None and want_gradient and tiling.may_attend(tile.piece):
            for log_sum, mean in tiling.attend(tile):
                partial.merge(tile.block, log_sum, mean)
            continue
        logits = tiling.logits(tile)
        if outside is not None:
            logits.masked_fill_(outside, -torch.inf)
        partial.merge_tile(tile.block, logits, tile.entries)
    if tiling.stands_twice:
        partial.merge_halves()
    return partial


def positives_pass(
    tiling: Tiling, log_sum: Tensor, share: Tensor, problem: Problem, want_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Means over P_i: two of (m, 1), and one of (m, D) where wanted.

    For `"negatives"`, of softplus(Z − s), σ(Z − s) and σ(Z − s)·k. For `"all"`, of s, 0 and k.
    """
    losses, weight = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
    pull = tiling.rows.new_zeros(len(log_sum), tiling.rows.shape[1]) if want_gradient else None
    # The sum of many finite terms could overflow, so they are divided by |P_i| first, unless
    # they are known to be small.
    early, late = (None, share) if tiling.bounded else (share, None)
    for tile in tiling.with_positives():
        logits = tiling.logits(tile)
        part = None if early is None else early[tile.block].expand_as(logits)
        if not tiling.is_all_positive(tile):
            positive = tiling.positive(tile)
            if positive is None:
                continue
            part = positive if part is None else positive * part
        if problem.denominator == "negatives":
            terms, strength = pulls(torch.sub(log_sum[tile.block], logits))
        else:
            terms, strength = logits, torch.ones_like(logits)
        if part is not None:
            terms, strength = terms.mul_(part), strength.mul_(part)
        losses[tile.block] += terms.sum(dim=1, keepdim=True)
        if problem.denominator == "negatives":
            weight[tile.block] += strength.sum(dim=1, keepdim=True)
        if pull is not None:
            # Not in place: a product that starts from a long sum loses the digits of each term.
            pull[tile.block] += strength @ tile.entries
    if late is not None:
        for sums in (losses, weight, pull):
            if sums is not None:
                sums.mul_(late)
    return losses, weight, pull


def entries_gradient(
    problem: Problem, statistics: AnchorStatistics, upstream: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """Σ_i g_i ∂L_i/∂k_j for the entries of the pieces that want it, else None.

    `upstream` is g (M,). Pieces that want nothing are not looked at: a bank may have been
    written to since the forward.
    """
    results = allocate_entries_gradient(problem, wanted)
    anchors = arrange_anchors(problem)
    if len(anchors) == 0:
        return results
    pieces = [
        arrange_entries(piece, problem) if want else None
        for piece, want in zip(problem.pieces, wanted, strict=True)
    ]
    tiling = Tiling(problem, anchors, pieces)
    everyone = anchors.places(slice(0, len(anchors)))
    statistics = statistics.of(everyone)
    scale = upstream[everyone][:, None] * problem.inverse_temperature
    for tile in tiling.all():
        change = coefficients(
            tiling.logits(tile),
            tiling.positive(tile),
            tiling.negative(tile),
            statistics.of(tile.block),
            problem.denominator,
        ).mul_(scale[tile.block])
        result, piece = results[tile.piece], pieces[tile.piece]
        assert result is not None
        assert piece is not None
        result[piece.places(tile.columns)] += change.T @ tiling.rows[tile.block]
    return results


def allocate_entries_gradient(problem: Problem, wanted: list[bool]) -> list[Tensor | None]:
    return [
        piece.entries.new_zeros(piece.entries.shape, dtype=problem.compute_dtype) if want else None
        for piece, want in zip(problem.pieces, wanted, strict=True)
    ]


def _count_positives(problem: Problem, anchors: Arrangement, pieces: list[Arrangement]) -> Tensor:
    """(m,) |P_i|, from the labels alone."""
    count = torch.zeros_like(anchors.labels)
    for piece, arrangement in zip(problem.pieces, pieces, strict=True):
        count += arrangement.count_of(anchors.labels)
        if piece.is_anchors:
            count -= (anchors.labels >= 0).to(count.dtype)
    return count
