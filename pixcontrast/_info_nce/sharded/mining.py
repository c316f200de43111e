"""Mining over entries that are distributed over ranks: the ranks find the thresholds together.

A threshold is the k-th largest hardness, or the k-th smallest random key, of an anchor's candidates
on all ranks. Radix selection needs only counts: each rank counts its own candidates, and the counts
are added up. The result is exact, ties included. A message holds 16 numbers an anchor; the
similarities are computed again for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, add_up
from pixcontrast._info_nce.derivative import Masks, finite, lse_of, positives_of
from pixcontrast._info_nce.mined.row_blocks import MaskedRows, RowBlocks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.radix_select import (
    count_digits_of,
    from_ordered_int,
    radix_select,
    to_ordered_int,
)
from pixcontrast._info_nce.results import DenominatorPartial, PositivesPartial
from pixcontrast._info_nce.thresholds import Thresholds, find_thresholds


class Selection(NamedTuple):
    """What to count: the positives or the negatives, by their hardness or by their random key.

    Attributes:
        positive (bool): the positives, not the negatives.
        by_key (bool): the key, of which the smallest is first; not the hardness.
        min_hardness (Tensor, optional): (M, 1), candidates need at least this hardness.
    """

    positive: bool
    by_key: bool
    min_hardness: Tensor | None


class MinedPasses:
    """The two passes of a problem with a negative sampler, with results in the caller's order.

    Attributes:
        thresholds (Thresholds): (M, 1) each; to be set before the passes run.
    """

    thresholds: Thresholds

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._blocks = RowBlocks(problem, [True] * len(problem.contrast))

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        like = self._problem.anchors.new_empty(0, dtype=self._problem.compute_dtype)
        lse = like.new_full(self._problem.labels.shape, -torch.inf)
        negative_mean = like.new_zeros(self._problem.anchors.shape) if want_gradient else None
        for indices, part, masks in self.selected():
            own = lse_of(part.logits, masks, self._problem.denominator)
            lse[indices] = own
            if negative_mean is not None:
                outside = ~masks.in_denominator(self._problem.denominator)
                softmax = torch.exp(part.logits - finite(own)[:, None]).masked_fill_(outside, 0.0)
                negative_mean[indices] = self._blocks.weighted_sum(softmax)
        return DenominatorPartial(lse, negative_mean)

    def positives(self, lse: Tensor, *, want_gradient: bool) -> PositivesPartial:
        losses, weight = torch.zeros_like(lse), torch.zeros_like(lse)
        num_positives = torch.zeros_like(lse, dtype=torch.int64)
        positive_grad = lse.new_zeros(self._problem.anchors.shape) if want_gradient else None
        for indices, part, masks in self.selected():
            own, weights = positives_of(
                part.logits, masks.positive, lse[indices], self._problem.denominator
            )
            num_positives[indices] = own.num_positives
            losses[indices] = own.losses
            weight[indices] = own.weight
            if positive_grad is not None:
                positive_grad[indices] = self._blocks.weighted_sum(weights)
        return PositivesPartial(num_positives, losses, weight, positive_grad)

    def available(self, *, positive: bool) -> Tensor:
        """Return the number of candidates of each anchor in this problem, (M, 1)."""
        available = torch.zeros_like(self._problem.labels)[:, None]
        for part in self._blocks.masked():
            candidate = part.masks.positive if positive else part.masks.negative
            available[self._blocks.anchors.indices(part.rows)] = candidate.sum(1, keepdim=True)
        return available

    def count_digits(self, selection: Selection, prefix: Tensor, shift: int) -> Tensor:
        """Count the candidates of each anchor (M, 16), see `radix_select.CountDigits`."""
        counts = torch.zeros_like(self._problem.labels)[:, None].repeat(1, 16)
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            candidate = part.masks.positive if selection.positive else part.masks.negative
            hardness = -part.logits if selection.positive else part.logits
            if selection.min_hardness is not None:
                candidate = candidate & (hardness >= selection.min_hardness[indices])
            integers = to_ordered_int(hardness)
            if selection.by_key:
                assert part.keys is not None  # every strategy with keys has drawn a seed
                integers = ~part.keys  # the smallest key is the largest integer
            counts[indices] = count_digits_of(integers, candidate, prefix[indices], shift)
        return counts

    def selected(self) -> Iterator[tuple[slice | Tensor, MaskedRows, Masks]]:
        """Yield a few anchors at a time: their indices, similarities and selected candidates."""
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            yield indices, part, part.select(self.thresholds.of(indices))


class _RankCandidates:
    """Candidates on all ranks, for the (W·M) anchors of all ranks; see `thresholds.Candidates`.

    `of_shard` has the anchors of all ranks and the entries of this rank's shard, `own` has the
    anchors of this rank and the entries of its batch.
    """

    def __init__(
        self, of_shard: MinedPasses, own: MinedPasses, like: Tensor, ranks: Ranks, *, positive: bool
    ) -> None:
        self._of_shard, self._own = of_shard, own
        self._like = like
        self._ranks = ranks
        self._positive = positive
        num_own = len(like) // ranks.size
        self._own_anchors = slice(ranks.rank * num_own, (ranks.rank + 1) * num_own)

    def available(self) -> Tensor:
        available = self._of_shard.available(positive=self._positive)
        available[self._own_anchors] += self._own.available(positive=self._positive)
        return add_up(self._ranks, available)

    def kth_hardness(self, k: Tensor) -> Tensor:
        dtype = to_ordered_int(self._like).dtype
        found = self._select(Selection(self._positive, False, None), k, dtype)
        no_candidate = found == torch.iinfo(dtype).min
        return from_ordered_int(found).masked_fill(no_candidate, -torch.inf)

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        selection = Selection(self._positive, True, min_hardness)
        every = torch.full_like(self._like, k, dtype=torch.int64)
        return ~self._select(selection, every, torch.int32)

    def _select(self, selection: Selection, k: Tensor, dtype: torch.dtype) -> Tensor:
        own = selection
        if selection.min_hardness is not None:
            own = selection._replace(min_hardness=selection.min_hardness[self._own_anchors])

        def count_digits(prefix: Tensor, shift: int) -> Tensor:
            counts = self._of_shard.count_digits(selection, prefix, shift)
            own_prefix = prefix[self._own_anchors]
            counts[self._own_anchors] += self._own.count_digits(own, own_prefix, shift)
            return add_up(self._ranks, counts)

        return radix_select(count_digits, k, dtype)


def find_rank_thresholds(
    of_shard: MinedPasses, own: MinedPasses, problem: Problem, ranks: Ranks
) -> Thresholds:
    """Return the thresholds of the anchors of all ranks, (W·M, 1) each, the same on every rank.

    Args:
        of_shard (MinedPasses): the anchors of all ranks against this rank's shard.
        own (MinedPasses): this rank's anchors against the entries of its batch.
        problem (Problem): of `own`.
        ranks (Ranks): the ranks.
    """
    sampler = problem.negative_sampler
    assert sampler is not None
    num_anchors = ranks.size * problem.labels.numel()
    like = problem.anchors.new_zeros(num_anchors, 1, dtype=problem.compute_dtype)
    negatives, positives = (
        _RankCandidates(of_shard, own, like, ranks, positive=positive) for positive in (False, True)
    )
    return find_thresholds(sampler, negatives, positives, like)
