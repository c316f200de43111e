"""The equation over entries that are spread over ranks: what each rank holds stays there.

The anchors of all ranks go to every rank, which makes its part of Z and o for all of them over its
own entries. The parts go back to the anchors' owners and are merged in rank order. Then the same
with the positives, under the Z that the owners have found. What an owner's batch contributes is
one more part, of its own anchors alone. No message grows with the entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from pixcontrast._distributed import Ranks, exchange, gather
from pixcontrast._equation.mined import allocate_thresholds
from pixcontrast._equation.parts import (
    DenominatorPart,
    Forward,
    Passes,
    PositivesPart,
    complete,
    merge_denominators,
    merge_positives,
)
from pixcontrast._equation.problem import LOG2_E, Piece, Problem, numbered
from pixcontrast._equation.sharded_mining import MinedPasses, find_thresholds
from pixcontrast._equation.tiled import TiledPasses, allocate_forward
from pixcontrast._labels import IGNORED
from pixcontrast.mining import Thresholds

Part = TypeVar("Part", DenominatorPart, PositivesPart)


def sharded_forward(
    problem: Problem,
    shard: Sequence[tuple[Tensor, Tensor]],
    ranks: Ranks,
    *,
    want_gradient: bool,
    fused: bool,
) -> tuple[Forward, Thresholds | None, Tensor]:
    """The forward over a problem's own pieces and every rank's shard.

    Every rank calls this with as many anchors, those that take no part among them.

    Args:
        problem: this rank's anchors, and what is at hand to contrast them with.
        shard: (n, D) entries and their labels (n,), of the same shapes on every rank.
        ranks: the ranks.
        want_gradient: whether to make the gradient of the anchors.
        fused: by kernels; not under mining.

    Returns:
        The result for this rank's anchors, the thresholds of mining, if there is any, and () int64
        how many entries all shards hold.
    """
    num_anchors = problem.labels.numel()
    if num_anchors == 0:  # and so on every rank
        nothing = allocate_forward(problem, want_gradient=want_gradient)
        none = None if problem.mining is None else allocate_thresholds(problem)
        return nothing, none, problem.labels.sum()
    anchors, labels = gather(ranks, [problem.anchors, problem.labels])
    of_all = replace(
        problem,
        anchors=anchors.flatten(0, 1),
        labels=labels.flatten(),
        pieces=_numbered(shard, ranks),
        first_row=0,
    )
    passes: list[Passes]
    thresholds = None
    if problem.mining is None:
        passes = [_passes(of_all, fused), _passes(problem, fused)]
    else:
        mined = MinedPasses(of_all), MinedPasses(problem)
        of_everyone = find_thresholds(*mined, problem, ranks)
        mine = slice(problem.first_row, problem.first_row + num_anchors)
        thresholds = Thresholds(*(column[mine].clone() for column in of_everyone))
        mined[0].thresholds, mined[1].thresholds = of_everyone, thresholds
        passes = list(mined)

    of_shard, own = (part.denominator(want_gradient=want_gradient) for part in passes)
    denominator = merge_denominators([*_to_owners(ranks, of_shard), own])

    entries = sum(((own_labels != IGNORED).sum() for _, own_labels in shard), labels.new_zeros(()))
    log_sums, held = gather(ranks, [denominator.log_sum, entries])
    pulled, own_pulled = (
        part.positives(log_sum, want_gradient=want_gradient)
        for part, log_sum in zip(passes, (log_sums.flatten(), denominator.log_sum), strict=True)
    )
    positives = merge_positives([*_to_owners(ranks, pulled), own_pulled])
    result = complete(problem, denominator, positives)
    if fused:
        # Its backward takes Z to the base 2.
        result.statistics.log_sum.mul_(LOG2_E)
    return result, thresholds, held.sum()


def _numbered(shard: Sequence[tuple[Tensor, Tensor]], ranks: Ranks) -> tuple[Piece, ...]:
    """A shard as pieces, numbered through over all ranks, below what is at hand."""
    total = sum(labels.numel() for _, labels in shard)
    return numbered(((*pair, False) for pair in shard), -total * (ranks.rank + 1))


def _to_owners(ranks: Ranks, part: Part) -> list[Part]:
    """A part for all ranks' anchors, sent to whose they are; back come the parts for our own."""
    there = [column for column in part if column is not None]
    by_owner = [column.view(ranks.size, -1, *column.shape[1:]) for column in there]
    received = iter(exchange(ranks, by_owner))
    columns = [None if column is None else next(received) for column in part]
    return [part._replace(**_of_rank(rank, part._fields, columns)) for rank in range(ranks.size)]


def _of_rank(rank: int, names: Sequence[str], columns: Sequence[Tensor | None]) -> dict[str, Any]:
    pairs = zip(names, columns, strict=True)
    return {name: None if column is None else column[rank] for name, column in pairs}


def _passes(problem: Problem, fused: bool) -> Passes:
    if fused:
        from pixcontrast._equation.fused_parts import FusedPasses

        return FusedPasses(problem)
    return TiledPasses(problem)
