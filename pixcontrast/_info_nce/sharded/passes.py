"""The equation over entries that are distributed over ranks and never leave their rank.

Every rank receives the anchors of all ranks and computes Z and o of its own shard for them. These
partial results are sent to the owners of the anchors and merged in rank order. The same is done for
the positives, with the merged Z. The entries of a rank's batch give one more partial result, for
its own anchors. The size of a message does not depend on the number of entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from pixcontrast._distributed import Ranks, exchange, gather
from pixcontrast._info_nce.derivative import complete
from pixcontrast._info_nce.merge import merge_denominators, merge_positives
from pixcontrast._info_nce.problem import LOG2_E, ContrastTensor, Problem, contrast_tensors
from pixcontrast._info_nce.results import (
    DenominatorPartial,
    ForwardResult,
    Passes,
    PositivesPartial,
    allocate_forward,
)
from pixcontrast._info_nce.sharded.mining import MinedPasses, find_rank_thresholds
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds
from pixcontrast._info_nce.tiled.passes import TiledPasses
from pixcontrast._labels import IGNORED

Partial = TypeVar("Partial", DenominatorPartial, PositivesPartial)


def sharded_forward(
    problem: Problem,
    shard: Sequence[tuple[Tensor, Tensor]],
    ranks: Ranks,
    *,
    want_gradient: bool,
    fused: bool,
) -> tuple[ForwardResult, Thresholds | None, Tensor]:
    """Compute the forward over a problem's own contrast tensors and the shards of all ranks.

    Every rank makes this call, with the same number of anchors (ignored ones included).

    Args:
        problem (Problem): this rank's anchors, and the contrast entries of its batch.
        shard (sequence of (Tensor, Tensor)): entries (n, D) and labels (n,), of the same shapes on
            every rank.
        ranks (Ranks): the ranks.
        want_gradient (bool): whether to compute the anchors' gradient.
        fused (bool): whether to use the fused form. It must be False with a negative sampler.

    Returns:
        The result of this rank's anchors, the thresholds of the negative sampler (None without one)
        and the number of entries in all shards, () int64.
    """
    num_anchors = problem.labels.numel()
    if num_anchors == 0:  # on every rank
        result = allocate_forward(problem, want_gradient=want_gradient)
        none = None if problem.negative_sampler is None else allocate_thresholds(problem)
        return result, none, problem.labels.sum()
    anchors, labels = gather(ranks, [problem.anchors, problem.labels])
    all_anchors = replace(
        problem,
        anchors=anchors.flatten(0, 1),
        labels=labels.flatten(),
        contrast=_shard_tensors(shard, ranks),
        first_anchor_id=0,
    )
    of_shard: Passes
    own: Passes
    thresholds = None
    if problem.negative_sampler is None:
        of_shard, own = _passes(all_anchors, fused), _passes(problem, fused)
    else:
        of_shard, own = MinedPasses(all_anchors), MinedPasses(problem)
        of_shard.thresholds = find_rank_thresholds(of_shard, own, problem, ranks)
        own_anchors = slice(problem.first_anchor_id, problem.first_anchor_id + num_anchors)
        own.thresholds = of_shard.thresholds.of(own_anchors)
        thresholds = Thresholds(*(column.clone() for column in own.thresholds))

    of_all = of_shard.denominator(want_gradient=want_gradient)
    of_own = own.denominator(want_gradient=want_gradient)
    denominator = merge_denominators([*_send_to_owners(ranks, of_all), of_own])
    zero = labels.new_zeros(())
    num_entries = sum(((own_labels != IGNORED).sum() for _, own_labels in shard), zero)
    all_lse, all_num_entries = gather(ranks, [denominator.lse, num_entries])
    positives_of_all = of_shard.positives(all_lse.flatten(), want_gradient=want_gradient)
    own_positives = own.positives(denominator.lse, want_gradient=want_gradient)
    positives = merge_positives([*_send_to_owners(ranks, positives_of_all), own_positives])
    result = complete(problem, denominator, positives)
    if fused:
        # The backward of the fused form expects Z to the base 2.
        result.statistics.lse.mul_(LOG2_E)
    return result, thresholds, all_num_entries.sum()


def _shard_tensors(
    shard: Sequence[tuple[Tensor, Tensor]], ranks: Ranks
) -> tuple[ContrastTensor, ...]:
    """Assign negative ids to the entries of a shard, distinct over all ranks."""
    total = sum(labels.numel() for _, labels in shard)
    return contrast_tensors(((*pair, False) for pair in shard), -total * (ranks.rank + 1))


def _send_to_owners(ranks: Ranks, partial: Partial) -> list[Partial]:
    """Send partial results of all anchors to the anchors' ranks; return those of own anchors."""
    columns = [column for column in partial if column is not None]
    by_owner = [column.view(ranks.size, -1, *column.shape[1:]) for column in columns]
    received = exchange(ranks, by_owner)
    # Only the last column, a gradient, may be None.
    absent = [None] * (len(partial) - len(columns))
    return [
        type(partial)(*(column[rank] for column in received), *absent) for rank in range(ranks.size)
    ]


def _passes(problem: Problem, fused: bool) -> Passes:
    if fused:
        from pixcontrast._info_nce.fused.passes import FusedPasses

        return FusedPasses(problem)
    return TiledPasses(problem)
