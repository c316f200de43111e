"""The tiled form with a negative sampler: selection, loss and gradients.

The selection is saved as thresholds. From these, the backward repeats it for the contrast tensors
that need a gradient. It does not read the others: a bank may have changed since the forward.

On the CPU (`gathered_block`), anchors and entries are sorted by class, so the positives of an
anchor are a few column ranges. They are copied, and the remaining columns are negatives. Partial
sorts select from both, and later steps read the selected candidates alone. The thresholds are those
of `thresholds.RowCandidates`. On other devices (`masked_rows`), masks of complete rows mark
positives and negatives.
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

# A partial sort keeps this many more than k candidates, in case they tie with the k-th.
MAX_TIES = 8
# `_topk` preselects groups of this many columns, if there are at least 2·k groups.
GROUP = 8


class TooManyTiesError(Exception):
    """More candidates tie at a threshold than a partial sort keeps."""


class TopK:
    """Candidates of R anchors, which `find_threshold` reduces to the selected ones.

    Attributes:
        hardness (Tensor): (R, N), −∞ for columns that are not candidates. After a selection (R, k),
            −∞ for padding.
        columns (Tensor, optional): (R, k), column of each selected candidate. None before a
            selection.
    """

    def __init__(self, hardness: Tensor, available: Tensor, keys: PairKeys | None) -> None:
        self.hardness = hardness
        self.columns: Tensor | None = None
        self._available = available
        self._keys = keys

    def available(self) -> Tensor:
        return self._available

    def kth_hardness(self, k: Tensor) -> Tensor:
        """Select the k hardest candidates, and those that tie with the last of them.

        Raises:
            TooManyTiesError: if more tie than the partial sort keeps.
        """
        k = torch.minimum(k, self._available).clamp(min=1)
        num_columns = self.hardness.shape[1]
        values, columns = _topk(self.hardness, min(int(k.max()) + MAX_TIES, num_columns))
        num_extra = values.shape[1] - k
        # The values are not sorted; sort only the smallest few.
        ascending = values.topk(int(num_extra.max()) + 1, largest=False).values
        least = ascending.gather(1, num_extra)
        if values.shape[1] < num_columns and bool((ascending[:, :1] >= least).any()):
            raise TooManyTiesError
        self.hardness, self.columns = values.masked_fill_(values < least, -torch.inf), columns
        return least

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        """Select the k smallest keys of the candidates that are left."""
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
    """Yield the results of a whole row block, or of a few rows at a time where masks are needed."""
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
        grad_logits = derivative_(part.logits, masks, result.statistics, denominator)
        gradient = blocks.weighted_sum(grad_logits).mul_(problem.inverse_temperature)
        result = result._replace(anchor_gradient=gradient)
    return result, thresholds


def gathered_block(
    blocks: RowBlocks, block: slice, logits: Tensor
) -> tuple[ForwardResult, Thresholds]:
    """Return the result and the thresholds of a row block, whose similarities are overwritten.

    Raises:
        TooManyTiesError: if more similarities tie at a threshold than partial sorts keep.
            `masked_rows` has no such limit.
    """
    problem, denominator = blocks.problem, blocks.problem.denominator
    positives = _take_positives(blocks, block, logits)
    available = blocks.num_columns - positives.num_same_class
    negatives = TopK(logits, available, blocks.keys(block, slice(None)))
    min_hardness, max_key = find_threshold(
        blocks.sampler, negatives, blocks.sampler.num_negatives, logits
    )
    thresholds = Thresholds(min_hardness, max_key, -positives.min_hardness, positives.max_key)

    positive = positives.hardness != -torch.inf  # NaN is a positive and reaches the loss
    masks = Masks(positive, torch.zeros_like(positive))
    similarities = positives.hardness.neg_().masked_fill_(~positive, 0.0)
    lse = negatives.hardness.logsumexp(dim=1)
    lse = torch.logaddexp(lse, lse_of(similarities, masks, denominator))
    means, _ = positives_of(similarities, positive, lse, denominator)
    result = complete(problem, DenominatorPartial(lse, None), means)
    if not problem.want_gradient:
        return result, thresholds
    grad_positives = derivative_(similarities, masks, result.statistics, denominator)
    grad_negatives = derivative_(negatives.hardness, None, result.statistics, denominator)
    if negatives.columns is not None and blocks.entries_are_operands():
        columns = torch.cat([negatives.columns, positives.columns], dim=1)
        gradient = blocks.weighted_sum_of(
            columns, torch.cat([grad_negatives, grad_positives], dim=1)
        )
    else:
        if negatives.columns is not None:
            logits.zero_().scatter_(1, negatives.columns, grad_negatives)
        gradient = blocks.weighted_sum(logits.scatter_add_(1, positives.columns, grad_positives))
    gradient.mul_(problem.inverse_temperature)
    return result._replace(anchor_gradient=gradient), thresholds


class _Positives(NamedTuple):
    """The selected positives of R anchors, their thresholds, and the size of the anchors' classes.

    `hardness`, −∞ for padding, and `columns` are (R, K); the others are (R, 1). `num_same_class` is
    the number of columns of the anchor's class, the anchor itself included.
    """

    hardness: Tensor
    columns: Tensor
    min_hardness: Tensor
    max_key: Tensor
    num_same_class: Tensor


def _take_positives(blocks: RowBlocks, block: slice, logits: Tensor) -> _Positives:
    """Select positives, one class at a time. Overwrite the similarities of the class by −∞."""
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
        candidates = TopK(hardness, num_columns - num_own, blocks.keys(anchors, indices))
        thresholds = find_threshold(sampler, candidates, sampler.num_positives, hardness)
        chosen = indices.expand_as(hardness)
        if candidates.columns is not None:
            chosen = indices[candidates.columns]
        of_classes.append(_Positives(candidates.hardness, chosen, *thresholds, num_columns))

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
    """Return the k largest, or smallest, values of each row and their columns, not sorted.

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
    """Compute the gradient of the selected entries, as `tiled_entries_gradient` does."""
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
            grad_logits = derivative_(logits, masks, statistics.of(indices), problem.denominator)
            grad_logits.mul_(scale)
            for tile in blocks.tiles(index):
                result[order.indices(tile)] += grad_logits[:, tile].T @ blocks.rows[block]
    return results
