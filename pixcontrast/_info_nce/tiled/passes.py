"""The tiled form: bounded memory, any device, the gradient computed in the forward.

The negative side of the loss is an attention (queries are anchors, keys and values are entries),
and its output is the negative part of the anchors' gradient:

    τ · ∂L_i/∂a_i = w_i · o_i − 1/|P_i| Σ_p σ(Z_i − s_ip) k_p,    o_i = Σ_n softmax_n(s_i) k_n

The first pass computes Z and o, one tile at a time. The second pass visits the positives alone and
computes the loss, w and the positive part of the gradient. The gradient of the anchors in their
role as anchors is complete when the forward ends. Entries that require a gradient take one more
pass in the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import (
    complete,
    derivative_,
    inverse_or_zero,
    positive_terms,
)
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    OnlineSoftmax,
    PositivesPartial,
    allocate_entries_gradient,
    allocate_forward,
    merge_denominators,
)
from pixcontrast._info_nce.tiled.tiles import Tiling


def tiled_forward(problem: Problem) -> ForwardResult:
    """Compute the losses and, if requested, the anchors' gradient in their role as anchors."""
    if problem.labels.numel() == 0:
        return allocate_forward(problem)
    passes = TiledPasses(problem)
    denominator = passes.denominator()
    positives = passes.positives(denominator.lse)
    return complete(problem, denominator, positives)


class TiledPasses:
    """The two passes over the tiles of a problem, with results in the caller's order."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._tiling = Tiling(problem, [True] * len(problem.is_anchors))
        self._indices = self._tiling.indices

    def denominator(self) -> DenominatorPartial:
        """Compute Z and o over N_i, or over everything but i itself for `"all"`."""
        tiling, want_gradient = self._tiling, self._problem.want_gradient
        softmax = OnlineSoftmax(tiling.rows, bounded=tiling.bounded, weighted=want_gradient)
        # Use attention only if o is requested, because it always computes o.
        for tile in tiling.in_denominator(attending=want_gradient):
            outside = tiling.outside_denominator(tile)
            if outside is None and want_gradient and tiling.may_attend(tile.contrast_index):
                for lse, mean in tiling.attend(tile):
                    softmax.add_partial(tile.block, lse, mean)
                continue
            logits = tiling.logits(tile)
            if outside is not None:
                logits.masked_fill_(outside, -torch.inf)
            softmax.add_tile(tile.block, logits, tile.entries)
        found = softmax.partial()
        if tiling.doubled:
            halves = found.negative_mean
            means = (None, None) if halves is None else halves.tensor_split(2)
            pairs = zip(found.lse.tensor_split(2), means, strict=True)
            found = merge_denominators([DenominatorPartial(*pair) for pair in pairs])
        negative_mean = None if found.negative_mean is None else self._unsort(found.negative_mean)
        return DenominatorPartial(self._unsort(found.lse, -torch.inf), negative_mean)

    def positives(self, lse: Tensor) -> PositivesPartial:
        """Compute the means over the positives. Sorted entries have them in few tiles."""
        tiling, denominator = self._tiling, self._problem.denominator
        want_gradient = self._problem.want_gradient
        count = self._count_positives()
        inv_num_positives = inverse_or_zero(count, lse.dtype)[:, None]
        lse = lse[self._indices][:, None]
        losses, weight = torch.zeros_like(lse), torch.zeros_like(lse)
        # It has no rows if no gradient is requested.
        positive_grad = lse.new_zeros(len(lse) if want_gradient else 0, tiling.rows.shape[1])
        # The sum of many finite terms could overflow, so divide each term by |P_i|. If the terms
        # are known to be small, divide the sum.
        per_term = None if tiling.bounded else inv_num_positives
        for tile in tiling.with_positives():
            logits = tiling.logits(tile)
            factor = None if per_term is None else per_term[tile.block].expand_as(logits)
            if not tiling.is_all_positive(tile):
                masks = tiling.masks(tile)
                if masks is None:
                    continue
                factor = masks.positive if factor is None else masks.positive * factor
            terms, strength = positive_terms(logits, lse[tile.block], factor, denominator)
            losses[tile.block] += terms.sum(dim=1, keepdim=True)
            if denominator == "negatives":
                weight[tile.block] += strength.sum(dim=1, keepdim=True)
            if want_gradient:
                # Not addmm_: adding each term to a large sum would lose digits of the terms.
                positive_grad[tile.block] += strength @ tile.entries
        if tiling.bounded:
            for sums in (losses, weight, positive_grad):
                sums.mul_(inv_num_positives[: len(sums)])
        return PositivesPartial(
            self._unsort(count),
            self._unsort(losses.squeeze(1)),
            self._unsort(weight.squeeze(1)),
            self._unsort(positive_grad) if want_gradient else None,
        )

    def _count_positives(self) -> Tensor:
        """Return |P_i| of the ordered anchors (m,), from the labels alone."""
        labels = self._tiling.anchors.labels
        count = torch.zeros_like(labels)
        for order in self._tiling.contrast.values():
            count += order.count_of(labels)
            if order.is_anchors:
                count -= (labels >= 0).to(count.dtype)
        return count

    def _unsort(self, values: Tensor, ignored: float = 0.0) -> Tensor:
        num_anchors = self._problem.labels.numel()
        result = values.new_full((num_anchors, *values.shape[1:]), ignored)
        result[self._indices] = values
        return result


def tiled_entries_gradient(
    problem: Problem, statistics: AnchorStatistics, upstream: Tensor, wanted: list[bool]
) -> list[Tensor | None]:
    """Compute Σ_i g_i ∂L_i/∂k_j for the `wanted` contrast tensors, None for the others.

    The entries of the others are not read: a bank may have changed since the forward. `upstream`
    (M,) is g, the gradient with respect to the losses. Results have the dtype that accumulates.
    """
    results = allocate_entries_gradient(problem, wanted)
    tiling = Tiling(problem, wanted)
    statistics = statistics.of(tiling.indices)
    scale = upstream[tiling.indices][:, None] * problem.inverse_temperature
    for tile in tiling.all():
        grad_logits = derivative_(
            tiling.logits(tile),
            tiling.masks(tile),
            statistics.of(tile.block),
            problem.denominator,
        ).mul_(scale[tile.block])
        result, order = results[tile.contrast_index], tiling.contrast[tile.contrast_index]
        assert result is not None
        result[order.indices(tile.columns)] += grad_logits.T @ tiling.rows[tile.block]
    return results
