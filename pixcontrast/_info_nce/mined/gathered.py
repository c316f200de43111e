"""What a stripe selects, gathered: on the CPU, where only what is selected is looked at again.

Anchors and entries are sorted by class, so the positives of an anchor are a few runs of columns.
They are taken out, and what remains are negatives. Each side then keeps its hardest, or its
smallest keys, by a partial sort; everything after that works on them alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import AnchorStatistics, pulls
from pixcontrast._info_nce.merge import finite
from pixcontrast._info_nce.mined.masked import MinedRows
from pixcontrast._info_nce.mined.row_blocks import Stripes
from pixcontrast._info_nce.mined.topk import Side, select
from pixcontrast._info_nce.problem import Denominator, Problem
from pixcontrast._info_nce.results import share_of
from pixcontrast.mining import Thresholds


class _Run:
    """Anchors of one class in a stripe, and the columns where their positives stand.

    Attributes:
        rows: of the stripe.
        columns: of the stripe, in parts.
        num_columns: how many there are.
        own: (r, n) where among them each anchor itself stands, once in each piece of anchors.
    """

    def __init__(self, stripes: Stripes, block: slice, anchors: slice, problem: Problem) -> None:
        self.rows = slice(anchors.start - block.start, anchors.stop - block.start)
        self.anchors = anchors
        self.columns: list[slice] = []
        self.num_columns = 0
        own: list[Tensor] = [stripes.anchors.labels.new_empty(anchors.stop - anchors.start, 0)]
        for number, piece in enumerate(problem.pieces):
            own_class = stripes.pieces[number].with_classes_of(stripes.anchors, anchors)
            if piece.is_anchors:
                first = self.num_columns + anchors.start - own_class.start
                own.append(_count_from(first, anchors.stop - anchors.start, own[0])[:, None])
            start = stripes.columns[number].start
            self.columns.append(slice(start + own_class.start, start + own_class.stop))
            self.num_columns += own_class.stop - own_class.start
        self.own = torch.cat(own, dim=1)

    @property
    def num_positives(self) -> int:
        return self.num_columns - self.own.shape[1]

    def taken_from(self, stripe: Tensor) -> Tensor:
        """(r, num_columns) a copy of what stands there."""
        return torch.cat([stripe[self.rows, columns] for columns in self.columns], dim=1)

    def put_into(self, stripe: Tensor, values: Tensor) -> None:
        widths = [columns.stop - columns.start for columns in self.columns]
        for columns, part in zip(self.columns, torch.split(values, widths, dim=1), strict=True):
            stripe[self.rows, columns] = part

    def fill(self, stripe: Tensor, value: float) -> None:
        for columns in self.columns:
            stripe[self.rows, columns] = value

    def fill_own(self, among: Tensor, value: float) -> None:
        among.scatter_(1, self.own, value)

    def column_numbers(self) -> Tensor:
        """(num_columns,) the columns themselves."""
        numbers = [_count_from(c.start, c.stop - c.start, self.own) for c in self.columns]
        return torch.cat(numbers)


def gathered_stripe(
    stripes: Stripes, block: slice, logits: Tensor, problem: Problem, *, want_gradient: bool
) -> MinedRows | None:
    """As `masked_rows`, of a whole stripe; None where similarities tie at a threshold.

    Then as many count as tie, which a mask can tell.
    """
    runs = [_Run(stripes, block, run, problem) for run in stripes.anchors.runs(block)]
    positives: list[Side] = []
    for run in runs:
        side = _select_positives(stripes, run, logits, problem)
        if side is None:
            return None
        positives.append(side)
    kept = [run.taken_from(logits) for run in runs]
    negatives = _select_negatives(stripes, block, runs, logits, problem)
    if negatives is None:
        for run, values in zip(runs, kept, strict=True):
            run.put_into(logits, values)
        return None

    log_sum = negatives.hardness.logsumexp(dim=1, keepdim=True)
    losses, weight, share = (torch.zeros_like(log_sum) for _ in range(3))
    changes = []
    for run, side in zip(runs, positives, strict=True):
        statistics = AnchorStatistics(log_sum[run.rows], weight[run.rows], share[run.rows])
        change = _weigh_positives(side, losses[run.rows], statistics, problem.denominator)
        changes.append(change)
    thresholds = Thresholds(
        negatives.least,
        negatives.last_key,
        torch.cat([-side.least for side in positives]),
        torch.cat([side.last_key for side in positives]),
    )
    gradient = None
    if want_gradient:
        pushed = negatives.hardness.sub_(finite(log_sum)).exp_().mul_(weight)
        if negatives.places is not None and stripes.may_be_weighed_in_place():
            gradient = stripes.weigh(negatives.places, pushed)
            for run, side, change in zip(runs, positives, changes, strict=True):
                columns = run.column_numbers()
                columns = columns.expand_as(change) if side.places is None else columns[side.places]
                gradient[run.rows] += stripes.weigh(columns, change)
        else:
            negatives.put(logits, pushed)
            for run, side, change in zip(runs, positives, changes, strict=True):
                among = change.new_zeros(change.shape[0], run.num_columns)
                run.put_into(logits, side.put(among, change))
            gradient = stripes.weigh_all(logits)
    return MinedRows(losses, AnchorStatistics(log_sum, weight, share), thresholds, gradient)


def _select_positives(stripes: Stripes, run: _Run, logits: Tensor, problem: Problem) -> Side | None:
    hardness = run.taken_from(logits).neg_()
    run.fill_own(hardness, -torch.inf)
    assert problem.mining is not None
    return select(
        problem.mining,
        hardness,
        run.own.new_full((hardness.shape[0], 1), run.num_positives),
        problem.mining.num_positives,
        None if problem.seed is None else stripes.keys(run.anchors, run.column_numbers()),
        run.fill_own,
    )


def _select_negatives(
    stripes: Stripes, block: slice, runs: list[_Run], logits: Tensor, problem: Problem
) -> Side | None:
    def fill_positives(stripe: Tensor, value: float) -> None:
        for run in runs:
            run.fill(stripe, value)

    fill_positives(logits, -torch.inf)
    available = stripes.anchors.labels.new_empty(logits.shape[0], 1)
    for run in runs:
        available[run.rows] = stripes.num_columns - run.num_columns
    assert problem.mining is not None
    return select(
        problem.mining,
        logits,
        available,
        problem.mining.num_negatives,
        None if problem.seed is None else stripes.keys(block, slice(None)),
        fill_positives,
    )


def _weigh_positives(
    side: Side, losses: Tensor, statistics: AnchorStatistics, denominator: Denominator
) -> Tensor:
    """(r, k) ∂L/∂s of the selected positives; losses and statistics are completed in place."""
    log_sum, weight, share = statistics
    there = side.hardness > -torch.inf
    share.copy_(share_of(there.sum(dim=1, keepdim=True), share.dtype))
    if denominator == "negatives":
        terms, strength = pulls(log_sum + side.hardness)
        losses.copy_(terms.mul_(share).sum(dim=1, keepdim=True))
        strength.mul_(share)
        weight.copy_(strength.sum(dim=1, keepdim=True))
        return strength.neg_()
    logits = side.hardness.neg().masked_fill_(~there, -torch.inf)
    log_sum.copy_(torch.logaddexp(log_sum, logits.logsumexp(dim=1, keepdim=True)))
    mean = logits.masked_fill(~there, 0.0).mul_(share).sum(dim=1, keepdim=True)
    losses.copy_(torch.where(share > 0, log_sum - mean, 0.0))
    weight.copy_(share > 0)
    return logits.sub_(finite(log_sum)).exp_().mul_(weight).sub_(share * there)


def _count_from(first: int, count: int, like: Tensor) -> Tensor:
    return torch.arange(first, first + count, device=like.device)
