"""The forward and the backward of the tiled form with a negative sampler.

The selection is saved as thresholds. With them, the backward repeats any part of the selection
without the rest: a bank may have changed since the forward.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import (
    Masks,
    complete,
    derivative_,
    finite,
    lse_of,
    positives_of,
)
from pixcontrast._info_nce.mined.gathered import TooManyTiesError, gathered_block
from pixcontrast._info_nce.mined.row_blocks import MaskedRows, RowBlocks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.radix_select import NUM_DIGITS, count_digits_of, to_ordered_int
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    PositivesPartial,
    allocate_entries_gradient,
    allocate_forward,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds, thresholds_of_rows
from pixcontrast._info_nce.tiled.class_order import reads_are_free


def mined_forward(problem: Problem, *, want_gradient: bool) -> tuple[ForwardResult, Thresholds]:
    """Compute the result as `tiled_forward` does, and the thresholds (M, 1) of each anchor."""
    result = allocate_forward(problem, want_gradient=want_gradient)
    thresholds = allocate_thresholds(problem)
    blocks = RowBlocks(problem, [True] * len(problem.contrast))
    for block, logits in blocks.all():
        for rows, found in _results(blocks, block, logits, problem, want_gradient):
            indices = blocks.anchors.indices(rows)
            for column, values in zip(_columns(result, thresholds), _columns(*found), strict=True):
                column[indices] = values
    return result, thresholds


def _results(
    blocks: RowBlocks, block: slice, logits: Tensor, problem: Problem, want_gradient: bool
) -> Iterator[tuple[slice, tuple[ForwardResult, Thresholds]]]:
    """Yield the results of a row block at once if it can be gathered, else of a few rows each."""
    if reads_are_free(logits.device):
        try:
            yield block, gathered_block(blocks, block, logits, problem, want_gradient=want_gradient)
            return
        except TooManyTiesError:
            blocks.write_all(logits, block)
    for part in blocks.split(block, logits):
        yield part.rows, masked_rows(blocks, part, problem, want_gradient=want_gradient)


def masked_rows(
    blocks: RowBlocks, part: MaskedRows, problem: Problem, *, want_gradient: bool
) -> tuple[ForwardResult, Thresholds]:
    """Return the result and the thresholds of R anchors. Their similarities are overwritten."""
    assert problem.negative_sampler is not None
    denominator = problem.denominator
    thresholds = thresholds_of_rows(problem.negative_sampler, part.logits, part.masks, part.keys)
    masks = part.select(thresholds)
    lse = lse_of(part.logits, masks, denominator)
    positives, _ = positives_of(part.logits, masks.positive, lse, denominator)
    result = complete(problem, DenominatorPartial(lse, None), positives)
    if want_gradient:
        change = derivative_(part.logits, masks, result.statistics, denominator)
        gradient = blocks.weighted_sum(change).mul_(problem.inverse_temperature)
        result = result._replace(anchor_gradient=gradient)
    return result, thresholds


def _columns(result: ForwardResult, thresholds: Thresholds) -> list[Tensor]:
    columns = [result.losses, result.has_positive, *result.statistics, *thresholds]
    return columns if result.anchor_gradient is None else [*columns, result.anchor_gradient]


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


class MinedPasses:
    """The two passes over the selected entries, with results in the caller's order."""

    thresholds: Thresholds  # of all anchors; to be set before the passes run

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._blocks = RowBlocks(problem, [True] * len(problem.contrast))

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        """Compute Z and o over the selected entries."""
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
        """Compute the means over the selected positives."""
        losses, weight = torch.zeros_like(lse), torch.zeros_like(lse)
        num_positives = torch.zeros_like(lse, dtype=torch.int64)
        positive_grad = lse.new_zeros(self._problem.anchors.shape) if want_gradient else None
        for indices, part, masks in self.selected():
            own, weights = positives_of(
                part.logits, masks.positive, lse[indices], self._problem.denominator
            )
            num_positives[indices], losses[indices], weight[indices], _ = own
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

    def count_digits(
        self, prefix: Tensor, shift: int, min_hardness: Tensor, *, positive: bool, by_key: bool
    ) -> Tensor:
        """Count the candidates of each anchor (M, 16), see `radix_select.CountDigits`.

        Their integers are those of the hardness, or, `by_key`, of the random key, of which the
        smallest is the largest integer. Candidates need at least `min_hardness` (M, 1).
        """
        counts = torch.zeros_like(self._problem.labels)[:, None].repeat(1, NUM_DIGITS)
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            candidate = part.masks.positive if positive else part.masks.negative
            hardness = -part.logits if positive else part.logits
            integers = to_ordered_int(hardness)
            if by_key:
                assert part.keys is not None  # every strategy with keys has drawn a seed
                integers = ~part.keys
            candidate = candidate & (hardness >= min_hardness[indices])
            counts[indices] = count_digits_of(integers, candidate, prefix[indices], shift)
        return counts

    def selected(self) -> Iterator[tuple[slice | Tensor, MaskedRows, Masks]]:
        """Yield a few anchors at a time: their indices, similarities and selected candidates."""
        for part in self._blocks.masked():
            indices = self._blocks.anchors.indices(part.rows)
            yield indices, part, part.select(self.thresholds.of(indices))
