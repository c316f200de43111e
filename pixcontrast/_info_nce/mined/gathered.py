"""Selection and loss of a row block on the CPU, where only selected candidates are read again.

Anchors and entries are sorted by class, so the positives of an anchor are a few column ranges. They
are copied out, and the remaining columns are negatives. Partial sorts select from each side; every
later step works on the selected candidates alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import Masks, complete, derivative_
from pixcontrast._info_nce.mined.masked import lse_of, positives_of
from pixcontrast._info_nce.mined.row_blocks import RowBlocks
from pixcontrast._info_nce.mined.topk import TooManyTiesError, TopK
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import DenominatorPartial, ForwardResult, PositivesPartial
from pixcontrast._info_nce.thresholds import Thresholds


class _ClassRows:
    """The anchors of one class in a row block, and the columns of that class.

    Attributes:
        anchors (slice): in the order of `RowBlocks.anchors`.
        rows (slice): in the row block.
        columns (list of slice): in the row block, one range for each contrast tensor.
        num_columns (int): the number of columns.
        own (Tensor): (r, n), for each anchor the positions among `columns` of the anchor itself.
    """

    def __init__(self, blocks: RowBlocks, block: slice, anchors: slice, problem: Problem) -> None:
        self.anchors = anchors
        self.rows = slice(anchors.start - block.start, anchors.stop - block.start)
        self.columns: list[slice] = []
        self.num_columns = 0
        num_anchors = anchors.stop - anchors.start
        own: list[Tensor] = [blocks.anchors.labels.new_empty(num_anchors, 0)]
        for index, tensor in enumerate(problem.contrast):
            of_class = blocks.contrast[index].slice_with_classes_of(blocks.anchors, anchors)
            if tensor.is_anchors:
                first = self.num_columns + anchors.start - of_class.start
                own.append(torch.arange(first, first + num_anchors)[:, None])
            start = blocks.columns[index].start
            self.columns.append(slice(start + of_class.start, start + of_class.stop))
            self.num_columns += of_class.stop - of_class.start
        self.own = torch.cat(own, dim=1)

    @property
    def num_positives(self) -> int:
        return self.num_columns - self.own.shape[1]

    def copy_from(self, block: Tensor) -> Tensor:
        """Copy the columns of the class (r, num_columns) out of a row block."""
        return torch.cat([block[self.rows, columns] for columns in self.columns], dim=1)

    def copy_into(self, block: Tensor, values: Tensor) -> None:
        """Copy the columns of the class (r, num_columns) into a row block."""
        widths = [columns.stop - columns.start for columns in self.columns]
        for columns, part in zip(self.columns, torch.split(values, widths, dim=1), strict=True):
            block[self.rows, columns] = part

    def fill(self, block: Tensor, value: float) -> None:
        """Fill the columns of the class in a row block."""
        for columns in self.columns:
            block[self.rows, columns] = value

    def fill_own(self, values: Tensor, value: float) -> None:
        """Fill the positions of the anchors themselves in (r, num_columns)."""
        values.scatter_(1, self.own, value)

    def column_indices(self) -> Tensor:
        """Return the columns of the class as indices (num_columns,)."""
        return torch.cat([torch.arange(one.start, one.stop) for one in self.columns])


def gathered_block(
    blocks: RowBlocks, block: slice, logits: Tensor, problem: Problem, *, want_gradient: bool
) -> tuple[ForwardResult, Thresholds] | None:
    """Return the result and the thresholds of a row block, whose similarities are overwritten.

    Returns None, and leaves the similarities unchanged, if too many of them tie at a threshold.
    All that tie are selected, which `masked_rows` can do.
    """
    classes = [
        _ClassRows(blocks, block, anchors, problem) for anchors in blocks.anchors.classes_in(block)
    ]
    copies = [rows.copy_from(logits) for rows in classes]
    try:
        positives = [
            _select_positives(blocks, rows, values, problem)
            for rows, values in zip(classes, copies, strict=True)
        ]
        negatives = _select_negatives(blocks, block, classes, logits, problem)
    except TooManyTiesError:
        for rows, values in zip(classes, copies, strict=True):
            rows.copy_into(logits, values)
        return None
    thresholds = Thresholds(
        negatives.min_hardness,
        negatives.max_key,
        torch.cat([-side.min_hardness for side in positives]),
        torch.cat([side.max_key for side in positives]),
    )

    lse = negatives.hardness.logsumexp(dim=1)
    logits_of, masks_of_class, partials = [], [], []
    for rows, side in zip(classes, positives, strict=True):
        positive = side.hardness > -torch.inf
        masks = Masks(positive, torch.zeros_like(positive))
        similarities = side.hardness.neg().masked_fill_(~positive, 0.0)
        lse[rows.rows] = torch.logaddexp(lse[rows.rows], lse_of(similarities, masks, problem))
        partial, _ = positives_of(similarities, positive, lse[rows.rows], problem)
        logits_of.append(similarities)
        masks_of_class.append(masks)
        partials.append(partial)
    num_positives, losses, weight = (
        torch.cat(columns) for columns in list(zip(*partials, strict=True))[:3]
    )
    result = complete(
        problem,
        DenominatorPartial(lse, None),
        PositivesPartial(num_positives, losses, weight, None),
    )
    if want_gradient:
        statistics, denominator = result.statistics, problem.denominator
        pushed = derivative_(negatives.hardness, None, statistics, denominator)
        changes = [
            derivative_(similarities, masks, statistics.of(rows.rows), denominator)
            for rows, similarities, masks in zip(classes, logits_of, masks_of_class, strict=True)
        ]
        gradient = _gradient(blocks, logits, negatives, pushed, classes, positives, changes)
        result = result._replace(anchor_gradient=gradient.mul_(problem.inverse_temperature))
    return result, thresholds


def _gradient(
    blocks: RowBlocks,
    logits: Tensor,
    negatives: TopK,
    pushed: Tensor,
    classes: list[_ClassRows],
    positives: list[TopK],
    changes: list[Tensor],
) -> Tensor:
    """Return (R, D) Σ_j ∂L/∂s_ij k_j. The row block `logits` is overwritten."""
    if negatives.columns is not None and blocks.entries_are_operands():
        gradient = blocks.weighted_sum_of(negatives.columns, pushed)
        for rows, side, change in zip(classes, positives, changes, strict=True):
            columns = rows.column_indices()
            columns = columns.expand_as(change) if side.columns is None else columns[side.columns]
            gradient[rows.rows] += blocks.weighted_sum_of(columns, change)
        return gradient
    negatives.put_into(logits, pushed)
    for rows, side, change in zip(classes, positives, changes, strict=True):
        among = change.new_zeros(change.shape[0], rows.num_columns)
        rows.copy_into(logits, side.put_into(among, change))
    return blocks.weighted_sum(logits)


def _select_positives(
    blocks: RowBlocks, rows: _ClassRows, similarities: Tensor, problem: Problem
) -> TopK:
    sampler = problem.negative_sampler
    assert sampler is not None
    hardness = similarities.neg()
    rows.fill_own(hardness, -torch.inf)
    available = rows.own.new_full((len(hardness), 1), rows.num_positives)
    keys = None if problem.seed is None else blocks.keys(rows.anchors, rows.column_indices())
    return TopK.select(
        sampler, sampler.num_positives, hardness, available, keys, fill_others=rows.fill_own
    )


def _select_negatives(
    blocks: RowBlocks, block: slice, classes: list[_ClassRows], logits: Tensor, problem: Problem
) -> TopK:
    def fill_positives(values: Tensor, value: float) -> None:
        for rows in classes:
            rows.fill(values, value)

    sampler = problem.negative_sampler
    assert sampler is not None
    fill_positives(logits, -torch.inf)
    available = blocks.anchors.labels.new_empty(len(logits), 1)
    for rows in classes:
        available[rows.rows] = blocks.num_columns - rows.num_columns
    keys = None if problem.seed is None else blocks.keys(block, slice(None))
    return TopK.select(
        sampler, sampler.num_negatives, logits, available, keys, fill_others=fill_positives
    )
