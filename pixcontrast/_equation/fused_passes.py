"""The fused form's launches: one function for each pass over tiles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._equation.coefficients import AnchorStatistics
from pixcontrast._equation.fused_layout import CHUNK, LOG2_E, Columns, Layout, padded_dim
from pixcontrast._equation.kernels.configurations import Configuration
from pixcontrast._equation.kernels.denominator import denominator_kernel
from pixcontrast._equation.kernels.entries import entries_kernel
from pixcontrast._equation.kernels.finish import finish_kernel, log_sum_kernel
from pixcontrast._equation.kernels.positives import positives_kernel
from pixcontrast._equation.kernels.stripes import stripe_kernel
from pixcontrast._equation.tiled import Forward
from pixcontrast.mining import Thresholds

# A share of the entries should be worth a program: so many blocks at the least.
LEAST_BLOCKS = 4
# Programs that wait for each other's last wave should be fewer than this part of all.
FULL_WAVES = 0.9
MOST_SHARES = 64
# Anchors and components of a program that merges partial results.
MERGED_ROWS, MERGED_COMPONENTS = 16, 64


class Partials(NamedTuple):
    """Partial results of the denominator, in slots: (S, M), (S, M) and (W, M, D), W ≤ S.

    Attributes:
        maxima: what the exponents are relative to; 0 throughout, and not written, where bounded.
        totals: Σ exp2(s − maximum).
        weighted: Σ exp2(s − maximum)·k, of the pieces whose gradient is made in the forward.
        log_sums: (M,) Z to the base 2, over all slots.
    """

    maxima: Tensor
    totals: Tensor
    weighted: Tensor
    log_sums: Tensor


class Sums(NamedTuple):
    """Sums over the positives, in slots: (S, M) three times and (W, M, D), W ≤ S."""

    counts: Tensor
    losses: Tensor
    weights: Tensor
    pulls: Tensor


def denominator_pass(
    layout: Layout, thresholds: Thresholds | None, *, want_gradient: bool
) -> Partials:
    """Partial results over every piece, and the Z they merge to."""
    problem, rows = layout.problem, layout.rows
    num_anchors, dim = rows.vectors.shape
    configuration = layout.configurations.denominator
    slots = _slots(layout, configuration, want_gradient)
    num_slots = sum(taken.num_shares for taken in slots)
    num_weighted = sum(taken.num_shares for taken in slots if taken.weighted)
    like = rows.vectors.new_empty(0, dtype=torch.float32)
    maxima, totals = (like.new_empty(num_slots, num_anchors) for _ in range(2))
    sums = like.new_empty(num_weighted, num_anchors, dim)
    log_sums = like.new_empty(num_anchors)
    for piece, weighted, first, num_shares in slots:
        denominator_kernel[(triton.cdiv(num_anchors, configuration.rows), num_shares)](
            rows.vectors,
            rows.classes,
            rows.num_present,
            *_entries(piece, layout),
            piece.first_classes,
            piece.last_classes,
            piece.num_blocks,
            *piece.runs,
            piece.run_counts,
            *_mining(layout, piece, thresholds),
            maxima[first:],
            totals[first:],
            sums[first:] if weighted else sums,
            num_anchors,
            *_scale_and_limit(layout),
            IS_ANCHORS=piece.is_anchors,
            ALL=problem.denominator == "all",
            WEIGHTED=weighted,
            CLEAN=_is_clean(layout, piece),
            CHUNK=CHUNK,
            **_constants(layout, piece, configuration),
        )
    block = 128
    log_sum_kernel[(triton.cdiv(num_anchors, block),)](
        maxima,
        totals,
        log_sums,
        len(totals),
        num_anchors,
        rows.num_present,
        BLOCK=block,
        BOUNDED=layout.bounded,
    )
    return Partials(maxima, totals, sums, log_sums)


def positives_pass(
    layout: Layout,
    partials: Partials,
    thresholds: Thresholds | None,
    *,
    want_gradient: bool,
) -> Sums:
    """Sums over the positives of every piece."""
    problem, rows = layout.problem, layout.rows
    num_anchors, dim = rows.vectors.shape
    configuration = layout.configurations.positives
    slots = _slots(layout, configuration, want_gradient)
    num_slots = sum(taken.num_shares for taken in slots)
    num_weighted = sum(taken.num_shares for taken in slots if taken.weighted)
    like = rows.vectors.new_empty(0, dtype=torch.float32)
    counts = like.new_empty(num_slots, num_anchors, dtype=torch.int32)
    losses, weights = (like.new_empty(num_slots, num_anchors) for _ in range(2))
    pulls = like.new_empty(num_weighted, num_anchors, dim)
    for piece, weighted, first, num_shares in slots:
        _, _, positive_hardness, positive_key, row_bits, column_bits = _mining(
            layout, piece, thresholds
        )
        positives_kernel[(triton.cdiv(num_anchors, configuration.rows), num_shares)](
            rows.vectors,
            rows.classes,
            rows.num_present,
            partials.log_sums,
            *_entries(piece, layout),
            piece.first_classes,
            piece.last_classes,
            piece.num_blocks,
            positive_hardness,
            positive_key,
            row_bits,
            column_bits,
            counts[first:],
            losses[first:],
            weights[first:],
            pulls[first:] if weighted else pulls,
            num_anchors,
            *_scale_and_limit(layout),
            1.0 / _expansion(layout),
            IS_ANCHORS=piece.is_anchors,
            ALL=problem.denominator == "all",
            WEIGHTED=weighted,
            CLEAN=_is_clean(layout, piece),
            CHUNK=CHUNK,
            TILES=layout.configurations.denominator.columns // configuration.columns,
            **_constants(layout, piece, configuration),
        )
    return Sums(counts, losses, weights, pulls)


def finish(layout: Layout, partials: Partials, sums: Sums, result: Forward) -> None:
    """Merge what the two passes left into the results, in the caller's order."""
    problem, rows = layout.problem, layout.rows
    num_anchors, dim = rows.vectors.shape
    weighted = result.gradient is not None
    gradient = result.losses if result.gradient is None else result.gradient
    blocks = triton.cdiv(dim, MERGED_COMPONENTS) if weighted else 1
    finish_kernel[(triton.cdiv(num_anchors, MERGED_ROWS), blocks)](
        rows.order,
        rows.num_present,
        partials.log_sums,
        partials.maxima,
        partials.weighted,
        len(partials.weighted),
        sums.counts,
        sums.losses,
        sums.weights,
        sums.pulls,
        len(sums.counts),
        len(sums.pulls),
        result.losses,
        result.has_positive,
        *result.statistics,
        gradient,
        num_anchors,
        _expansion(layout),
        problem.inverse_temperature,
        D=dim,
        BLOCK_M=MERGED_ROWS,
        BLOCK_D=MERGED_COMPONENTS,
        ALL=problem.denominator == "all",
        BOUNDED=layout.bounded,
        WEIGHTED=weighted,
    )


def entries_pass(
    layout: Layout,
    piece: Columns,
    statistics: AnchorStatistics,
    thresholds: Thresholds | None,
    upstream: Tensor,
) -> Tensor:
    """(n, D) the gradient of a piece; of the anchors themselves, in both of their roles."""
    problem, rows = layout.problem, layout.rows
    configuration = layout.configurations.entries
    num_anchors, dim = rows.vectors.shape
    if len(piece) == 0:
        return rows.vectors.new_empty(0, dim, dtype=torch.float32)
    num_blocks = triton.cdiv(len(piece), configuration.rows)
    most = triton.cdiv(num_anchors, configuration.columns)
    num_shares = _fill(layout.num_processors, num_blocks, most)
    gradients = rows.vectors.new_empty(num_shares, len(piece), dim, dtype=torch.float32)
    half = problem.product_dtype == torch.float16
    entries_kernel[(num_blocks, num_shares)](
        rows.vectors,
        rows.classes,
        rows.num_present,
        *statistics,
        upstream,
        *_entries(piece, layout),
        *_mining(layout, piece, thresholds),
        gradients,
        num_shares,
        *_scale_and_limit(layout),
        problem.inverse_temperature,
        IS_ANCHORS=piece.is_anchors,
        BOTH_ROLES=_has_both_roles(layout, piece),
        ALL=problem.denominator == "all",
        IN_FLOAT32=half,
        **_constants(layout, piece, configuration),
    )
    return gradients[0] if num_shares == 1 else gradients.sum(dim=0)


def write_stripe(layout: Layout, first: int, stop: int, logits: Tensor) -> None:
    """The similarities, to the base 2, of the sorted anchors first … stop − 1 with all pieces."""
    configuration = layout.configurations.denominator
    column = 0
    for piece in layout.pieces:
        constants = _constants(layout, piece, configuration)
        del constants["MINED"]
        if len(piece) > 0:
            num_rows = stop - first // configuration.rows * configuration.rows
            # The first axis is the one that may be long.
            grid = (piece.num_blocks, triton.cdiv(num_rows, configuration.rows))
            stripe_kernel[grid](
                layout.rows.vectors,
                first,
                stop,
                *_entries(piece, layout),
                logits[:, column:],
                logits.stride(0),
                *_scale_and_limit(layout),
                **constants,
            )
        column += len(piece)


def _has_both_roles(layout: Layout, piece: Columns) -> bool:
    """Whether the backward makes a piece's gradient as anchors and as entries in one pass."""
    return piece.is_anchors and layout.problem.mining is None


class Slots(NamedTuple):
    """The slots in which the programs of a piece leave their results.

    Attributes:
        piece: which has entries.
        weighted: whether they hold a part of the gradient: the backward makes that of the anchors
            against themselves, both roles in one pass.
        first: the first of them.
        num_shares: how many, one for each share of the entries.
    """

    piece: Columns
    weighted: bool
    first: int
    num_shares: int


def _slots(layout: Layout, configuration: Configuration, want_gradient: bool) -> list[Slots]:
    """Of every piece that has entries; those with a part of the gradient stand first."""
    marked = [
        (piece, want_gradient and not _has_both_roles(layout, piece))
        for piece in layout.pieces
        if piece.num_blocks > 0
    ]
    slots: list[Slots] = []
    first = 0
    for piece, weighted in sorted(marked, key=lambda mark: not mark[1]):
        num_shares = _num_shares(layout, configuration, piece.num_blocks)
        slots.append(Slots(piece, weighted, first, num_shares))
        first += num_shares
    return slots


def _num_shares(layout: Layout, configuration: Configuration, num_blocks: int) -> int:
    """Into how many shares the entries of a piece are split, for every processor to have work."""
    row_blocks = triton.cdiv(len(layout.rows.classes), configuration.rows)
    return _fill(layout.num_processors, row_blocks, triton.cdiv(num_blocks, LEAST_BLOCKS))


def _fill(num_processors: int, num_blocks: int, most: int) -> int:
    """The fewest shares, at most `most`, that keep the processors busy to the last wave."""
    best, fullest = 1, 0.0
    for shares in range(1, max(1, min(most, MOST_SHARES)) + 1):
        programs = num_blocks * shares
        full = programs / (triton.cdiv(programs, num_processors) * num_processors)
        if full > fullest:
            best, fullest = shares, full
        if fullest >= FULL_WAVES:
            break
    return best


def _entries(piece: Columns, layout: Layout) -> tuple[Any, ...]:
    largest = torch.finfo(layout.problem.product_dtype).max
    row_stride, column_stride = piece.entries.stride()
    return piece.entries, piece.classes, len(piece), row_stride, column_stride, largest


def _mining(layout: Layout, piece: Columns, thresholds: Thresholds | None) -> tuple[Tensor, ...]:
    """The thresholds of the sorted anchors, and both parts of the keys."""
    asked = (layout.rows.classes,) * 4 if thresholds is None else tuple(thresholds)
    return *asked, layout.rows.bits, piece.bits


def _scale_and_limit(layout: Layout) -> tuple[float, float]:
    problem = layout.problem
    largest = torch.finfo(torch.float32).max
    return min(problem.inverse_temperature * LOG2_E, largest), problem.logit_limit * LOG2_E


def _is_clean(layout: Layout, piece: Columns) -> bool:
    """Whether what is absent is known to hold finite numbers."""
    return layout.problem.unit_length or piece.is_anchors


def _expansion(layout: Layout) -> float:
    """A power of two no smaller than any number of positives."""
    total = sum(len(piece) for piece in layout.pieces)
    return float(triton.next_power_of_2(max(1, total)))


def _constants(layout: Layout, piece: Columns, configuration: Configuration) -> dict[str, Any]:
    problem = layout.problem
    dim = problem.anchors.shape[1]
    largest = torch.finfo(problem.product_dtype).max
    return {
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": configuration.rows,
        "BLOCK_N": configuration.columns,
        "BOUNDED": layout.bounded,
        "MINED": problem.mining is not None,
        "NARROWS": torch.finfo(piece.entries.dtype).max > largest,
        "PRECISION": layout.precision,
        "WIDEN": layout.interpreted,
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
    }
