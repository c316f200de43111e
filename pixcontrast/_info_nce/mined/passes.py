"""The tiled form under mining: stripe by stripe, selection, losses and gradients.

What a stripe selects is kept as thresholds, so that a backward pass can make any part of it again
without the rest: a bank may have been written to since.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast import mining
from pixcontrast._info_nce.derivative import AnchorStatistics, coefficients
from pixcontrast._info_nce.mined.gathered import gathered_stripe
from pixcontrast._info_nce.mined.masked import MinedRows, masked_rows
from pixcontrast._info_nce.mined.row_blocks import Stripes
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.random_keys import LARGEST_KEY
from pixcontrast._info_nce.results import Forward
from pixcontrast._info_nce.tiled.class_order import values_cost_nothing
from pixcontrast._info_nce.tiled.passes import allocate_entries_gradient, allocate_forward
from pixcontrast._info_nce.tiled.similarities import slices
from pixcontrast.mining import Thresholds

# Similarities that are masked at a time: a dozen tensors of this size live at once.
MASKED_SIZE = 1 << 20


def mined_forward(problem: Problem, *, want_gradient: bool) -> tuple[Forward, Thresholds]:
    """As `tiled_forward`, and the thresholds (M, 1) of each anchor's selection."""
    result = allocate_forward(problem, want_gradient=want_gradient)
    thresholds = allocate_thresholds(problem)
    stripes = Stripes(problem, [True] * len(problem.pieces))
    if stripes.num_columns == 0:
        return result, thresholds
    for block, logits in stripes.all():
        for rows, mined in _mined(stripes, block, logits, problem, want_gradient):
            places = stripes.anchors.places(rows)
            result.losses[places] = mined.losses.squeeze(1)
            result.has_positive[places] = mined.statistics.share.squeeze(1) > 0
            result.statistics.put(places, mined.statistics)
            for column, values in zip(thresholds, mined.thresholds, strict=True):
                column[places] = values
            if result.gradient is not None and mined.gradient is not None:
                result.gradient[places] = mined.gradient
    return result, thresholds


def mined_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds,
    upstream: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """As `entries_gradient`, of the entries that met the thresholds."""
    results = allocate_entries_gradient(problem, wanted)
    stripes = Stripes(problem, wanted)
    for block in stripes.blocks():
        places = stripes.anchors.places(block)
        scale = upstream[places][:, None] * problem.inverse_temperature
        found = Thresholds(*(column[places] for column in thresholds))
        for number, result in enumerate(results):
            if result is None:
                continue
            piece = stripes.pieces[number]
            logits = stripes.rows.new_empty(block.stop - block.start, len(piece))
            stripes.fill(logits, block, number)
            logits, positive, negative, keys = stripes.part(logits, block, [number])
            positive, negative = mining.keep(found, logits, positive, negative, keys)
            change = coefficients(
                logits, positive, negative, statistics.of(places), problem.denominator
            ).mul_(scale)
            for tile in stripes.tiles(number):
                result[piece.places(tile)] += change[:, tile].T @ stripes.rows[block]
    return results


def _mined(
    stripes: Stripes, block: slice, logits: Tensor, problem: Problem, want_gradient: bool
) -> list[tuple[slice, MinedRows]]:
    """A stripe, as one part where its entries may be gathered, or a few rows at a time."""
    if values_cost_nothing(logits.device):
        mined = gathered_stripe(stripes, block, logits, problem, want_gradient=want_gradient)
        if mined is not None:
            return [(block, mined)]
    parts = []
    for rows in slices(block, max(1, MASKED_SIZE // stripes.num_columns)):
        own = logits[rows.start - block.start : rows.stop - block.start]
        mined = masked_rows(stripes, rows, own, problem, want_gradient=want_gradient)
        parts.append((rows, mined))
    return parts


def allocate_thresholds(problem: Problem) -> Thresholds:
    logit = problem.anchors.new_zeros(problem.labels.numel(), 1, dtype=problem.compute_dtype)
    key = torch.full_like(logit, LARGEST_KEY, dtype=torch.int32)
    return Thresholds(logit, key, logit.clone(), key.clone())
