"""The pass over the entries of Z: an attention whose output is the gradient's negative part.

Queries are anchors, keys and values are entries. Each program takes a block of anchors and a share
of the entries, and leaves a partial result: a reference, Σ exp(s − reference) and
Σ exp(s − reference)·k, where exp and s are to the base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.blocks import alone, part_of_run
from pixcontrast._info_nce.fused.kernels.similarity import fetch, multiply, selected, similarities


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors"])
def denominator_kernel(
    rows,
    row_classes,
    num_present,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    largest,
    first_classes,
    last_classes,
    num_blocks,
    run_starts,
    run_stops,
    run_befores,
    run_counts,
    negative_hardness,
    negative_key,
    positive_hardness,
    positive_key,
    row_bits,
    column_bits,
    maxima,
    totals,
    weighted_sums,
    num_anchors,
    scale,
    limit,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MINED: tl.constexpr,
    CLEAN: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Program (i, k): the partial of anchor block i over the k-th share of a piece's entries."""
    first_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    present = tl.load(num_present)
    if first_row >= present:
        return
    row_numbers = first_row + tl.arange(0, BLOCK_M)
    inside = row_numbers < present
    anchors = fetch(rows, row_numbers, inside, D, 1, largest, rows, D, BLOCK_D, False)
    own_classes = tl.load(row_classes + row_numbers, mask=inside, other=-1)
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    # Where it is not wanted, as small as a tensor can be.
    weighted = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        hardness = tl.load(negative_hardness + row_numbers, mask=inside, other=0.0)
        key = tl.load(negative_key + row_numbers, mask=inside, other=0)
        own_hardness = tl.load(positive_hardness + row_numbers, mask=inside, other=0.0)
        own_key = tl.load(positive_key + row_numbers, mask=inside, other=0)
        bits = tl.load(row_bits + row_numbers, mask=inside, other=0)

    # Blocks of the anchors' own class alone, where that is one, hold nothing that counts.
    gap = num_blocks
    gap_stop = num_blocks
    if not ALL:
        least = tl.load(row_classes + first_row)
        greatest = tl.load(row_classes + tl.minimum(first_row + BLOCK_M, present) - 1)
        if least == greatest:
            gap, gap_stop = alone(first_classes, last_classes, num_blocks, least, CHUNK)

    num_there = tl.load(run_counts + 1)
    mine = num_there * split // tl.num_programs(1)
    mine_stop = num_there * (split + 1) // tl.num_programs(1)
    for run in range(tl.load(run_counts)):
        start, stop, skip, num_skipped = part_of_run(
            tl.load(run_starts + run),
            tl.load(run_stops + run),
            tl.load(run_befores + run),
            mine,
            mine_stop,
            gap,
            gap_stop,
        )
        for visit in range(start, stop):
            block = tl.where(visit >= skip, visit + num_skipped, visit)
            numbers = block * BLOCK_N + tl.arange(0, BLOCK_N)
            within = numbers < num_entries
            classes = tl.load(entry_classes + numbers, mask=within, other=-1)
            there = classes >= 0
            # What is absent may hold NaN, and 0 · NaN would reach the rest, unless it is known not
            # to: then a fetch need not wait for the classes.
            columns = fetch(
                entries,
                numbers,
                within if CLEAN else there,
                row_stride,
                column_stride,
                largest,
                rows,
                D,
                BLOCK_D,
                NARROWS,
            )
            logits = similarities(anchors, columns, scale, limit, BOUNDED, PRECISION, WIDEN)
            counted = there[None, :]
            if MINED:
                others = tl.load(column_bits + numbers, mask=within, other=0)[None, :]
                counted = counted & selected(
                    logits, hardness[:, None], key[:, None], bits[:, None], others, False
                )
            if not ALL:
                counted = counted & (own_classes[:, None] != classes[None, :])
            else:
                if MINED:
                    easy = there[None, :] & selected(
                        logits, own_hardness[:, None], own_key[:, None], bits[:, None], others, True
                    )
                    counted = tl.where(own_classes[:, None] == classes[None, :], easy, counted)
                if IS_ANCHORS:
                    counted = counted & (row_numbers[:, None] != numbers[None, :])
            logits = tl.where(counted, logits, float("-inf"))
            if BOUNDED:
                likelihoods = tl.exp2(logits)
            else:
                raised = tl.maximum(maximum, tl.max(logits, 1))
                # exp2(−∞ − −∞) is NaN: what has seen nothing is kept relative to 0.
                reference = tl.where(raised == float("-inf"), 0.0, raised)
                rescaled = tl.exp2(maximum - reference)
                likelihoods = tl.exp2(logits - reference[:, None])
                total = total * rescaled
                if WEIGHTED:
                    weighted = weighted * rescaled[:, None]
                maximum = raised
            total += tl.sum(likelihoods, 1)
            if WEIGHTED:
                weighted = multiply(
                    likelihoods.to(columns.dtype), columns, weighted, PRECISION, WIDEN
                )

    places = row_numbers.to(tl.int64) + split * num_anchors
    if not BOUNDED:
        tl.store(maxima + places, maximum, mask=inside)
    tl.store(totals + places, total, mask=inside)
    if WEIGHTED:
        components = tl.arange(0, BLOCK_D)
        map_places = places[:, None] * D + components[None, :]
        tl.store(
            weighted_sums + map_places, weighted, mask=inside[:, None] & (components < D)[None, :]
        )
