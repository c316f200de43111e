"""The equation over entries that are distributed over ranks and never leave their rank.

Every rank receives the anchors of all ranks and computes Z and o of its own shard for them. These
partial results are sent to the ranks of the anchors and merged in rank order. The same is done for
the positives, with the merged Z. For its own anchors, each rank adds a partial result of the
entries of its batch. The size of a message does not depend on the number of entries.

With a negative sampler, the ranks find the thresholds together. A threshold is the k-th largest
hardness, or the k-th smallest random key, of an anchor's candidates on all ranks. It is found from
counts alone: each rank counts its own candidates, and the counts are added up. The result is
exact, also with ties, and the similarities are computed again for each message. In the tiled form a
message has 16 numbers for each anchor; for the kernels see `fused/thresholds.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, add_up, exchange, gather, ranks_named
from pixcontrast._info_nce.derivative import Masks, complete, lse_of, positives_of
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.radix_select import (
    NUM_DIGITS,
    count_digits_of,
    from_ordered_int,
    radix_select,
    to_ordered_int,
)
from pixcontrast._info_nce.results import (
    DenominatorPartial,
    ForwardResult,
    PositivesPartial,
    allocate_forward,
    finite,
    merge_denominators,
    merge_positives,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds, find_thresholds
from pixcontrast._info_nce.tiled.passes import TiledPasses
from pixcontrast._info_nce.tiled.row_blocks import MaskedRows, RowBlocks
from pixcontrast._tensors import IGNORED

Partial = TypeVar("Partial", DenominatorPartial, PositivesPartial)


def sharded_forward(problem: Problem) -> tuple[ForwardResult, Thresholds | None, Tensor]:
    """Compute the forward over a problem's own contrast tensors and the shards of all ranks.

    Every rank makes this call, with the same number of anchors (ignored ones included) and shards
    of the same shapes.

    Returns:
        The result of this rank's anchors, the thresholds of the negative sampler (None without one)
        and the number of entries in all shards, () int64.
    """
    assert problem.group is not None
    ranks = ranks_named(problem.group)
    num_anchors = problem.labels.numel()
    zero = problem.labels.new_zeros(())
    num_entries = sum(((shard != IGNORED).sum() for shard in problem.shard_labels), zero)
    if num_anchors == 0:  # on every rank
        result = allocate_forward(problem)
        none = None if problem.negative_sampler is None else allocate_thresholds(problem)
        return result, none, gather(ranks, [num_entries])[0].sum()
    anchors, labels = gather(ranks, [problem.anchors, problem.labels])
    all_anchors = replace(
        problem,
        anchors=anchors.flatten(0, 1),
        labels=labels.flatten(),
        entries=problem.shard_entries,
        entry_labels=problem.shard_labels,
        is_anchors=[False] * len(problem.shard_entries),
        first_entry_id=problem.first_shard_id(ranks.rank),
        first_anchor_id=0,
    )
    thresholds = None
    of_shard, own = _passes(all_anchors), _passes(problem)
    if problem.negative_sampler is not None:
        of_all = of_shard.find_thresholds(own, ranks)
        of_shard.select(of_all)
        mine = _anchors_of(ranks, num_anchors)
        thresholds = Thresholds(*(column[mine].clone() for column in of_all))
        own.select(thresholds)

    of_all = of_shard.denominator()
    of_own = own.denominator()
    denominator = merge_denominators([*_send_to_owners(ranks, of_all), of_own])
    all_lse, all_num_entries = gather(ranks, [denominator.lse, num_entries])
    positives_of_all = of_shard.positives(all_lse.flatten())
    own_positives = own.positives(denominator.lse)
    positives = merge_positives([*_send_to_owners(ranks, positives_of_all), own_positives])
    result = complete(problem, denominator, positives)
    if problem.form == "triton":
        # The backward of the fused form expects Z to the base 2.
        result.statistics.lse.mul_(LOG2_E)
    return result, thresholds, all_num_entries.sum()


class MinedPasses:
    """The two passes over the selected entries, with results in the caller's order."""

    thresholds: Thresholds

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._blocks = RowBlocks(problem, [True] * len(problem.contrast))

    def find_thresholds(self, own: MinedPasses, ranks: Ranks) -> Thresholds:
        """Return the thresholds of the anchors of all ranks, (W·M, 1), the same on every rank.

        These passes have the anchors of all ranks against the shard of this rank. `own` has the
        anchors of this rank against the entries of its batch.
        """
        problem = self._problem
        assert problem.negative_sampler is not None
        like = problem.anchors.new_zeros(len(problem.labels), 1, dtype=problem.compute_dtype)
        negatives, positives = (
            _RankCandidates(self, own, like, ranks, positive=positive) for positive in (False, True)
        )
        return find_thresholds(problem.negative_sampler, negatives, positives, like)

    def select(self, thresholds: Thresholds) -> None:
        """Set the thresholds of all anchors, before the passes run."""
        self.thresholds = thresholds

    def denominator(self) -> DenominatorPartial:
        """Compute Z and o over the selected entries."""
        like = self._problem.anchors.new_empty(0, dtype=self._problem.compute_dtype)
        lse = like.new_full(self._problem.labels.shape, -torch.inf)
        negative_mean = None
        if self._problem.want_gradient:
            negative_mean = like.new_zeros(self._problem.anchors.shape)
        for indices, part, masks in self.selected():
            own = lse_of(part.logits, masks, self._problem.denominator)
            lse[indices] = own
            if negative_mean is not None:
                outside = ~masks.in_denominator(self._problem.denominator)
                softmax = torch.exp(part.logits - finite(own)[:, None]).masked_fill_(outside, 0.0)
                negative_mean[indices] = self._blocks.weighted_sum(softmax)
        return DenominatorPartial(lse, negative_mean)

    def positives(self, lse: Tensor) -> PositivesPartial:
        """Compute the means over the selected positives."""
        losses, weight = torch.zeros_like(lse), torch.zeros_like(lse)
        num_positives = torch.zeros_like(lse, dtype=torch.int64)
        positive_grad = None
        if self._problem.want_gradient:
            positive_grad = lse.new_zeros(self._problem.anchors.shape)
        for indices, part, masks in self.selected():
            own, weights = positives_of(
                part.logits, masks.positive, lse[indices], self._problem.denominator
            )
            num_positives[indices], losses[indices], weight[indices], _ = own
            if positive_grad is not None:
                positive_grad[indices] = self._blocks.weighted_sum(weights)
        return PositivesPartial(num_positives, losses, weight, positive_grad)

    def selected(self) -> Iterator[tuple[slice | Tensor, MaskedRows, Masks]]:
        """Yield indices, similarities and selected candidates of a few anchors at a time."""
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            yield indices, part, part.select(self.thresholds.of(indices))

    def count_digits(
        self,
        prefix: Tensor,
        shift: int,
        min_hardness: Tensor | None,
        *,
        positive: bool,
        by_key: bool,
    ) -> Tensor:
        """Count the candidates of each anchor (M, 16), see `radix_select.CountDigits`.

        The integer of a candidate is its hardness as an ordered integer or, with `by_key`, its
        inverted key. Only candidates of at least `min_hardness` (M, 1) are counted.
        """
        counts = torch.zeros_like(self._problem.labels)[:, None].repeat(1, NUM_DIGITS)
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            hardness, candidate = part.logits, part.masks.negative
            if positive:
                hardness, candidate = -part.logits, part.masks.positive
            if min_hardness is not None:
                candidate = candidate & (hardness >= min_hardness[indices])
            integers = to_ordered_int(hardness)
            if by_key:
                assert part.keys is not None  # every strategy with keys has drawn a seed
                integers = ~part.keys
            counts[indices] = count_digits_of(integers, candidate, prefix[indices], shift)
        return counts


class _RankCandidates:
    """Candidates on all ranks, for the anchors of all ranks; see `thresholds.Candidates`."""

    def __init__(
        self, of_shard: MinedPasses, own: MinedPasses, like: Tensor, ranks: Ranks, *, positive: bool
    ) -> None:
        self._of_shard, self._own = of_shard, own
        self._like = like
        self._ranks = ranks
        self._positive = positive

    def available(self) -> Tensor:
        # Every candidate reaches digit 0.
        lowest = torch.zeros_like(to_ordered_int(self._like))
        available = self._count_digits(lowest, 0, None, by_key=False)[:, :1]
        return add_up(self._ranks, available.contiguous())

    def kth_hardness(self, k: Tensor) -> Tensor:
        found = self._kth_integer(k, None, by_key=False)
        no_candidate = found == torch.iinfo(found.dtype).min
        return from_ordered_int(found).masked_fill(no_candidate, -torch.inf)

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        # The smallest key is the largest integer.
        return ~self._kth_integer(k, min_hardness, by_key=True)

    def _kth_integer(self, k: Tensor | int, min_hardness: Tensor | None, *, by_key: bool) -> Tensor:
        def count_digits(prefix: Tensor, shift: int) -> Tensor:
            counts = self._count_digits(prefix, shift, min_hardness, by_key=by_key)
            return add_up(self._ranks, counts)

        dtype = torch.int32 if by_key else to_ordered_int(self._like).dtype
        requested = torch.zeros_like(self._like, dtype=torch.int64) + k
        return radix_select(count_digits, requested, dtype)

    def _count_digits(
        self, prefix: Tensor, shift: int, min_hardness: Tensor | None, *, by_key: bool
    ) -> Tensor:
        """Count the candidates that this rank has, for the anchors of all ranks."""
        rows = _anchors_of(self._ranks, len(self._like) // self._ranks.size)
        options = {"positive": self._positive, "by_key": by_key}
        own_hardness = None if min_hardness is None else min_hardness[rows]
        counts = self._of_shard.count_digits(prefix, shift, min_hardness, **options)
        counts[rows] += self._own.count_digits(prefix[rows], shift, own_hardness, **options)
        return counts


def _anchors_of(ranks: Ranks, num_anchors: int) -> slice:
    """Return this rank's anchors among those of all ranks."""
    return slice(ranks.rank * num_anchors, (ranks.rank + 1) * num_anchors)


def _send_to_owners(ranks: Ranks, partial: Partial) -> list[Partial]:
    """Send the partial results of each anchor to its rank; return those of this rank's anchors."""
    columns = [column for column in partial if column is not None]
    by_owner = [column.view(ranks.size, -1, *column.shape[1:]) for column in columns]
    received = exchange(ranks, by_owner)
    # Only the last column, a gradient, may be None.
    absent = [None] * (len(partial) - len(columns))
    return [
        type(partial)(*(column[rank] for column in received), *absent) for rank in range(ranks.size)
    ]


def _passes(problem: Problem) -> Any:
    """Return `Passes`; with a negative sampler, they have the methods of `MinedPasses`."""
    if problem.form == "triton":
        from pixcontrast._info_nce.fused.passes import FusedPasses

        return FusedPasses(problem)
    return TiledPasses(problem) if problem.negative_sampler is None else MinedPasses(problem)
