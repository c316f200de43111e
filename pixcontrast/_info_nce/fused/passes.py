"""The fused form's launches: one function for each pass over tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel
from pixcontrast._info_nce.fused.kernels.entries import entries_kernel
from pixcontrast._info_nce.fused.kernels.finish import finish_kernel, log_sum_kernel
from pixcontrast._info_nce.fused.kernels.positives import positives_kernel
from pixcontrast._info_nce.fused.launch import (
    constants_of,
    entries_arguments,
    expansion,
    has_both_roles,
    is_clean,
    mining_arguments,
    scale_and_limit,
    shares_that_fill,
    slots_of,
)
from pixcontrast._info_nce.fused.layout import CHUNK, Columns, Layout
from pixcontrast._info_nce.results import AnchorStatistics, ForwardResult
from pixcontrast._info_nce.thresholds import Thresholds

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
    slots = slots_of(layout, configuration, want_gradient)
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
            *entries_arguments(piece, layout),
            piece.first_classes,
            piece.last_classes,
            piece.num_blocks,
            *piece.runs,
            *mining_arguments(layout, piece, thresholds),
            maxima[first:],
            totals[first:],
            sums[first:] if weighted else sums,
            num_anchors,
            *scale_and_limit(layout),
            IS_ANCHORS=piece.is_anchors,
            ALL=problem.denominator == "all",
            WEIGHTED=weighted,
            CLEAN=is_clean(layout, piece),
            CHUNK=CHUNK,
            **constants_of(layout, piece, configuration),
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
    slots = slots_of(layout, configuration, want_gradient)
    num_slots = sum(taken.num_shares for taken in slots)
    num_weighted = sum(taken.num_shares for taken in slots if taken.weighted)
    like = rows.vectors.new_empty(0, dtype=torch.float32)
    counts = like.new_empty(num_slots, num_anchors, dtype=torch.int32)
    losses, weights = (like.new_empty(num_slots, num_anchors) for _ in range(2))
    pulls = like.new_empty(num_weighted, num_anchors, dim)
    for piece, weighted, first, num_shares in slots:
        _, _, positive_hardness, positive_key, row_bits, column_bits = mining_arguments(
            layout, piece, thresholds
        )
        positives_kernel[(triton.cdiv(num_anchors, configuration.rows), num_shares)](
            rows.vectors,
            rows.classes,
            rows.num_present,
            partials.log_sums,
            *entries_arguments(piece, layout),
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
            *scale_and_limit(layout),
            1.0 / expansion(layout),
            IS_ANCHORS=piece.is_anchors,
            ALL=problem.denominator == "all",
            WEIGHTED=weighted,
            CLEAN=is_clean(layout, piece),
            CHUNK=CHUNK,
            TILES=layout.configurations.denominator.columns // configuration.columns,
            **constants_of(layout, piece, configuration),
        )
    return Sums(counts, losses, weights, pulls)


def finish(layout: Layout, partials: Partials, sums: Sums, result: ForwardResult) -> None:
    """Merge what the two passes left into the results, in the caller's order."""
    problem, rows = layout.problem, layout.rows
    num_anchors, dim = rows.vectors.shape
    weighted = result.anchor_gradient is not None
    gradient = result.losses if result.anchor_gradient is None else result.anchor_gradient
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
        expansion(layout),
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
    num_shares = shares_that_fill(layout.num_processors, num_blocks, most)
    gradients = rows.vectors.new_empty(num_shares, len(piece), dim, dtype=torch.float32)
    half = problem.product_dtype == torch.float16
    entries_kernel[(num_blocks, num_shares)](
        rows.vectors,
        rows.classes,
        rows.num_present,
        *statistics,
        upstream,
        *entries_arguments(piece, layout),
        *mining_arguments(layout, piece, thresholds),
        gradients,
        num_shares,
        *scale_and_limit(layout),
        problem.inverse_temperature,
        IS_ANCHORS=piece.is_anchors,
        BOTH_ROLES=has_both_roles(layout, piece),
        ALL=problem.denominator == "all",
        IN_FLOAT32=half,
        **constants_of(layout, piece, configuration),
    )
    return gradients[0] if num_shares == 1 else gradients.sum(dim=0)
