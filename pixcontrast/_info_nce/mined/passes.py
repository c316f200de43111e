"""The forward and the backward of the tiled form with a negative sampler.

The selection is saved as thresholds. With them, the backward repeats any part of the selection
without the rest: a bank may have changed since the forward.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from pixcontrast._info_nce.derivative import derivative_
from pixcontrast._info_nce.mined.gathered import gathered_block
from pixcontrast._info_nce.mined.masked import masked_rows
from pixcontrast._info_nce.mined.row_blocks import RowBlocks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    ForwardResult,
    allocate_entries_gradient,
    allocate_forward,
)
from pixcontrast._info_nce.thresholds import Thresholds, allocate_thresholds
from pixcontrast._info_nce.tiled.class_order import reads_are_free


def mined_forward(problem: Problem, *, want_gradient: bool) -> tuple[ForwardResult, Thresholds]:
    """Compute the result as `tiled_forward` does, and the thresholds (M, 1) of each anchor."""
    result = allocate_forward(problem, want_gradient=want_gradient)
    thresholds = allocate_thresholds(problem)
    blocks = RowBlocks(problem, [True] * len(problem.contrast))
    if blocks.num_columns == 0:
        return result, thresholds
    for block, logits in blocks.all():
        for rows, of_rows, met in _results(blocks, block, logits, problem, want_gradient):
            indices = blocks.anchors.indices(rows)
            result.put(indices, of_rows)
            for column, values in zip(thresholds, met, strict=True):
                column[indices] = values
    return result, thresholds


def _results(
    blocks: RowBlocks, block: slice, logits: Tensor, problem: Problem, want_gradient: bool
) -> Iterator[tuple[slice, ForwardResult, Thresholds]]:
    """Yield the results of a row block at once if it can be gathered, else of a few rows each."""
    if reads_are_free(logits.device):
        gathered = gathered_block(blocks, block, logits, problem, want_gradient=want_gradient)
        if gathered is not None:
            yield block, *gathered
            return
    for part in blocks.split(block, logits):
        yield part.rows, *masked_rows(blocks, part, problem, want_gradient=want_gradient)


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
            masks = blocks.mask(block, logits, [index]).select(thresholds.of(indices))
            change = derivative_(logits, masks, statistics.of(indices), problem.denominator).mul_(
                scale
            )
            for tile in blocks.tiles(index):
                result[order.indices(tile)] += change[:, tile].T @ blocks.rows[block]
    return results
