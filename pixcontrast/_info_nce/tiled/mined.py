"""The tiled form with a negative sampler: what is selected, its loss and its gradients.

The selection is saved as thresholds. With them, the backward repeats any part of the selection
without the rest: a bank may have changed since the forward.

On the CPU, anchors and entries are sorted by class, so the positives of an anchor are a few column
ranges. They are copied out, and the remaining columns are negatives. Partial sorts select from each
side; every later step works on the selected candidates alone. The thresholds are those of
`thresholds.RowCandidates`. Elsewhere, masks of complete rows tell the sides apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.derivative import Masks, complete, derivative_, lse_of, positives_of
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    allocate_entries_gradient,
    allocate_forward,
)
from pixcontrast._info_nce.thresholds import (
    LARGEST_KEY,
    PairKeys,
    Thresholds,
    allocate_thresholds,
    find_threshold,
    thresholds_of_rows,
)
from pixcontrast._info_nce.tiled.class_order import reads_are_free
from pixcontrast._info_nce.tiled.row_blocks import MaskedRows, RowBlocks

# The partial sort has room for this many candidates that tie at a threshold.
MAX_TIES = 8
# Columns are preselected in groups of this size, if more than twice k groups exist.
GROUP = 8


class TooManyTiesError(Exception):
    """More candidates tie at a threshold than the partial sort has room for."""


class TopK:
    """Candidates of R anchors, of which `find_threshold` leaves the selected ones.

    Attributes:
        hardness (Tensor): (R, N), −∞ for columns that are no candidates; then (R, k), of each
            selected candidate, −∞ where there is none.
        columns (Tensor, optional): (R, k), column of each selected candidate; None: all columns, in
            order.
    """

    def __init__(self, hardness: Tensor, available: Tensor, keys: PairKeys | None) -> None:
        self.hardness = hardness
        self.columns: Tensor | None = None
        self._available = available
        self._keys = keys

    def available(self) -> Tensor:
        return self._available

    def kth_hardness(self, k: Tensor) -> Tensor:
        """Select the k hardest, and what ties with the last of them.

        Raises:
            TooManyTiesError: if more tie than there is room for.
        """
        k = torch.minimum(k, self._available).clamp(min=1)
        num_columns = self.hardness.shape[1]
        values, columns = _topk(self.hardness, min(int(k.max()) + MAX_TIES, num_columns))
        num_extra = values.shape[1] - k
        # The values are in no order; only the smallest few are sorted.
        ascending = values.topk(int(num_extra.max()) + 1, largest=False).values
        least = ascending.gather(1, num_extra)
        if values.shape[1] < num_columns and bool((ascending[:, :1] >= least).any()):
            raise TooManyTiesError
        self.hardness, self.columns = values.masked_fill_(values < least, -torch.inf), columns
        return least

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        """Select the k smallest keys of what `kth_hardness` has selected, or of all candidates."""
        assert self._keys is not None  # every strategy with keys has drawn a seed
        keys = self._keys.all() if self.columns is None else self._keys.at(self.columns)
        keys.masked_fill_(self.hardness == -torch.inf, LARGEST_KEY)
        # Only `LARGEST_KEY` occurs more than once in a row.
        values, chosen = _topk(keys, min(k, keys.shape[1]), largest=False)
        self.hardness = self.hardness.gather(1, chosen)
        self.columns = chosen if self.columns is None else self.columns.gather(1, chosen)
        return values.amax(dim=1, keepdim=True)


def mined_forward(problem: Problem) -> tuple[ForwardResult, Thresholds]:
    """Compute the result as `tiled_forward` does, and the thresholds (M, 1) of each anchor."""
    result = allocate_forward(problem)
    thresholds = allocate_thresholds(problem)
    blocks = RowBlocks(problem, [True] * len(problem.contrast))
    for block, logits in blocks.all():
        for rows, found in _results(blocks, block, logits):
            indices = blocks.anchors.indices(rows)
            for column, values in zip(_columns(result, thresholds), _columns(*found), strict=True):
                column[indices] = values
    return result, thresholds


def _results(
    blocks: RowBlocks, block: slice, logits: Tensor
) -> Iterator[tuple[slice, tuple[ForwardResult, Thresholds]]]:
    """Yield the results of a row block at once if it can be gathered, else of a few rows each."""
    if reads_are_free(logits.device):
        try:
            yield block, gathered_block(blocks, block, logits)
            return
        except TooManyTiesError:
            blocks.write_all(logits, block)
    for part in blocks.split(block, logits):
        yield part.rows, masked_rows(blocks, part)


def _columns(result: ForwardResult, thresholds: Thresholds) -> list[Tensor]:
    columns = [result.losses, result.has_positive, *result.statistics, *thresholds]
    return columns if result.anchor_gradient is None else [*columns, result.anchor_gradient]


def masked_rows(blocks: RowBlocks, part: MaskedRows) -> tuple[ForwardResult, Thresholds]:
    """Return the result and the thresholds of R anchors. Their similarities are overwritten."""
    problem, denominator = blocks.problem, blocks.problem.denominator
    thresholds = thresholds_of_rows(blocks.sampler, part.logits, part.masks, part.keys)
    masks = part.select(thresholds)
    lse = lse_of(part.logits, masks, denominator)
    positives, _ = positives_of(part.logits, masks.positive, lse, denominator)
    result = complete(problem, DenominatorPartial(lse, None), positives)
    if problem.want_gradient:
        change = derivative_(part.logits, masks, result.statistics, denominator)
        gradient = blocks.weighted_sum(change).mul_(problem.inverse_temperature)
        result = result._replace(anchor_gradient=gradient)
    return result, thresholds


def gathered_block(
    blocks: RowBlocks, block: slice, logits: Tensor
) -> tuple[ForwardResult, Thresholds]:
    """Return the result and the thresholds of a row block, whose similarities are overwritten.

    Raises:
        TooManyTiesError: if more similarities tie at a threshold than partial sorts have room for.
            All that tie are selected, which `masked_rows` can do.
    """
    problem, denominator = blocks.problem, blocks.problem.denominator
    positives = _take_positives(blocks, block, logits)
    available = blocks.num_columns - positives.num_same_class
    negatives = TopK(logits, available, blocks.keys(block, slice(None)))
    min_hardness, max_key = find_threshold(
        blocks.sampler, negatives, blocks.sampler.num_negatives, logits
    )
    thresholds = Thresholds(min_hardness, max_key, -positives.min_hardness, positives.max_key)

    positive = positives.hardness > -torch.inf
    masks = Masks(positive, torch.zeros_like(positive))
    similarities = positives.hardness.neg_().masked_fill_(~positive, 0.0)
    lse = negatives.hardness.logsumexp(dim=1)
    lse = torch.logaddexp(lse, lse_of(similarities, masks, denominator))
    means, _ = positives_of(similarities, positive, lse, denominator)
    result = complete(problem, DenominatorPartial(lse, None), means)
    if not problem.want_gradient:
        return result, thresholds
    change = derivative_(similarities, masks, result.statistics, denominator)
    pushed = derivative_(negatives.hardness, None, result.statistics, denominator)
    if negatives.columns is not None and blocks.entries_are_operands():
        columns = torch.cat([negatives.columns, positives.columns], dim=1)
        gradient = blocks.weighted_sum_of(columns, torch.cat([pushed, change], dim=1))
    else:
        if negatives.columns is not None:
            logits.zero_().scatter_(1, negatives.columns, pushed)
        gradient = blocks.weighted_sum(logits.scatter_add_(1, positives.columns, change))
    gradient.mul_(problem.inverse_temperature)
    return result._replace(anchor_gradient=gradient), thresholds


class _Positives(NamedTuple):
    """The selected positives of R anchors: hardness (−∞ where there is none) and column, (R, K).

    With their thresholds, and the number of columns of the anchor's class, itself included, (R, 1).
    """

    hardness: Tensor
    columns: Tensor
    min_hardness: Tensor
    max_key: Tensor
    num_same_class: Tensor


def _take_positives(blocks: RowBlocks, block: slice, logits: Tensor) -> _Positives:
    """Select positives, one class of anchors at a time, and replace the columns of it by −∞."""
    sampler = blocks.sampler
    of_classes = []
    for anchors in blocks.anchors.classes_in(block):
        rows = slice(anchors.start - block.start, anchors.stop - block.start)
        num_own, ranges = 0, []
        for order, columns in zip(blocks.contrast, blocks.columns, strict=True):
            if order.is_anchors:
                own = slice(columns.start + anchors.start, columns.start + anchors.stop)
                logits[rows, own].fill_diagonal_(torch.inf)  # never a hard positive
                num_own += 1
            of_class = order.slice_with_classes_of(blocks.anchors, anchors)
            ranges.append(slice(columns.start + of_class.start, columns.start + of_class.stop))
        hardness = torch.cat([logits[rows, one] for one in ranges], dim=1).neg_()
        for one in ranges:
            logits[rows, one] = -torch.inf
        indices = torch.cat(
            [torch.arange(one.start, one.stop, device=logits.device) for one in ranges]
        )
        num_columns = indices.new_full((len(hardness), 1), len(indices))
        side = TopK(hardness, num_columns - num_own, blocks.keys(anchors, indices))
        thresholds = find_threshold(sampler, side, sampler.num_positives, hardness)
        chosen = indices.expand_as(hardness) if side.columns is None else indices[side.columns]
        of_classes.append(_Positives(side.hardness, chosen, *thresholds, num_columns))

    num_kept = max(positives.hardness.shape[1] for positives in of_classes)
    padded = [
        positives._replace(
            hardness=_pad(positives.hardness, num_kept, -torch.inf),
            columns=_pad(positives.columns, num_kept, 0),
        )
        for positives in of_classes
    ]
    return _Positives(*(torch.cat(column) for column in zip(*padded, strict=True)))


def _pad(values: Tensor, num_columns: int, value: float) -> Tensor:
    return F.pad(values, (0, num_columns - values.shape[1]), value=value)


def _topk(values: Tensor, k: int, *, largest: bool = True) -> tuple[Tensor, Tensor]:
    """Return the k largest, or smallest, values of each row and their columns, in no order.

    For small k, groups of columns are preselected by their largest, or smallest, value.
    """
    num_rows, num_columns = values.shape
    num_groups = num_columns // GROUP
    if 2 * k > num_groups:
        found, columns = values.topk(k, 1, largest, sorted=False)
        return found, columns
    grouped = values[:, : GROUP * num_groups].reshape(num_rows, GROUP, num_groups)
    extreme = grouped.amax(dim=1) if largest else grouped.amin(dim=1)
    _, groups = extreme.topk(k, 1, largest, sorted=False)
    every = torch.arange(num_columns, device=values.device)
    firsts, rest = every[: GROUP * num_groups : num_groups], every[GROUP * num_groups :]
    columns = groups[:, None, :] + firsts[:, None]
    columns = torch.cat([columns.flatten(1), rest.expand(num_rows, -1)], dim=1)
    found, chosen = values.gather(1, columns).topk(k, 1, largest, sorted=False)
    return found, columns.gather(1, chosen)


def mined_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds,
    upstream: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """Compute the gradient as `tiled_entries_gradient` does, of the selected entries."""
    results = allocate_entries_gradient(problem, wanted)
    blocks = RowBlocks(problem, wanted)
    for block in blocks.blocks():
        indices = blocks.anchors.indices(block)
        scale = upstream[indices][:, None] * problem.inverse_temperature
        for index, result in enumerate(results):
            if result is None:
                continue
            order = blocks.contrast[index]
            logits = blocks.rows.new_empty(block.stop - block.start, len(order))
            blocks.write(logits, block, index)
            masks = blocks.mask(block, logits, index).select(thresholds.of(indices))
            change = derivative_(logits, masks, statistics.of(indices), problem.denominator)
            change.mul_(scale)
            for tile in blocks.tiles(index):
                result[order.indices(tile)] += change[:, tile].T @ blocks.rows[block]
    return results
