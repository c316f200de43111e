"""Thresholds of mining by selection over streamed tiles: digit by digit, from the top.

An anchor's threshold is the k-th largest value of its candidates, as an integer of the same order.
Each pass counts how many candidates reach each of the 15 values that its next 4 bits could make,
and takes the largest that k of them reach. Eight passes make 32 bits: exact, with nothing written
but counts, which are integers and add up to the same in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.blocks import alone, overlap, part_of_run
from pixcontrast._info_nce.fused.kernels.similarity import fetch, mix, similarities


@triton.jit
def ordered(values):
    """float32 as int32 of the same order; zeros of both signs are the same."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _images(
    row_numbers,
    own_classes,
    anchors,
    bits,
    least,
    numbers,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    largest,
    rows,
    column_bits,
    scale,
    limit,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    POSITIVE: tl.constexpr,
    BY_KEY: tl.constexpr,
    POOLED: tl.constexpr,
    BOUNDED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(m, n) what is selected by, the larger the better; the least of all for no candidate.

    By hardness: the similarity of a negative, its opposite of a positive. By key: the smaller ones
    are better; where `POOLED`, of those at least as hard as `least`.
    """
    within = numbers < num_entries
    classes = tl.load(entry_classes + numbers, mask=within, other=-1)
    there = classes >= 0
    same = own_classes[:, None] == classes[None, :]
    if POSITIVE:
        candidate = there[None, :] & same
        if IS_ANCHORS:
            candidate = candidate & (row_numbers[:, None] != numbers[None, :])
    else:
        candidate = there[None, :] & (same == 0)
    if POOLED or not BY_KEY:
        columns = fetch(
            entries, numbers, there, row_stride, column_stride, largest, rows, D, BLOCK_D, NARROWS
        )
        hardness = similarities(anchors, columns, scale, limit, BOUNDED, PRECISION, WIDEN)
        if POSITIVE:
            hardness = -hardness
    if BY_KEY:
        others = tl.load(column_bits + numbers, mask=within, other=0)
        images = -1 - mix(bits[:, None] ^ others[None, :])
        if POOLED:
            candidate = candidate & (hardness >= least[:, None])
    else:
        images = ordered(hardness)
    return tl.where(candidate, images, -2147483648)


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors", "shift"])
def count_kernel(
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
    leasts,
    row_bits,
    column_bits,
    prefixes,
    counts,
    num_anchors,
    shift,
    scale,
    limit,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    POSITIVE: tl.constexpr,
    BY_KEY: tl.constexpr,
    POOLED: tl.constexpr,
    BOUNDED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Program (i, k): of anchor block i and the k-th share of a piece, who reaches which value.

    Positives are looked for where the survey says that they may stand, as by `positives_kernel`;
    negatives as by `denominator_kernel`.
    """
    first_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    present = tl.load(num_present)
    if first_row >= present:
        return
    row_numbers = first_row + tl.arange(0, BLOCK_M)
    inside = row_numbers < present
    anchors = fetch(rows, row_numbers, inside, D, 1, largest, rows, D, BLOCK_D, False)
    own_classes = tl.load(row_classes + row_numbers, mask=inside, other=-1)
    bits = tl.load(row_bits + row_numbers, mask=inside, other=0)
    least = tl.load(leasts + row_numbers, mask=inside, other=0.0)
    prefix = tl.load(prefixes + row_numbers, mask=inside, other=0)
    digits = tl.arange(0, 16)
    counted = tl.zeros([BLOCK_M, 16], dtype=tl.int32)

    lowest = tl.load(row_classes + first_row)
    highest = tl.load(row_classes + tl.minimum(first_row + BLOCK_M, present) - 1)
    if POSITIVE:
        first, last = overlap(first_classes, last_classes, num_blocks, lowest, highest, CHUNK)
        num_runs = 1
        num_there = last - first
        gap = num_blocks
        gap_stop = num_blocks
    else:
        first = 0
        last = 0
        num_runs = tl.load(run_counts)
        num_there = tl.load(run_counts + 1)
        gap = num_blocks
        gap_stop = num_blocks
        if lowest == highest:
            gap, gap_stop = alone(first_classes, last_classes, num_blocks, lowest, CHUNK)
    mine = num_there * split // tl.num_programs(1)
    mine_stop = num_there * (split + 1) // tl.num_programs(1)
    for run in range(num_runs):
        if POSITIVE:
            run_start = first
            run_stop = last
            before = 0
        else:
            run_start = tl.load(run_starts + run)
            run_stop = tl.load(run_stops + run)
            before = tl.load(run_befores + run)
        start, stop, skip, num_skipped = part_of_run(
            run_start, run_stop, before, mine, mine_stop, gap, gap_stop
        )
        for visit in range(start, stop):
            block = tl.where(visit >= skip, visit + num_skipped, visit)
            images = _images(
                row_numbers,
                own_classes,
                anchors,
                bits,
                least,
                block * BLOCK_N + tl.arange(0, BLOCK_N),
                entries,
                entry_classes,
                num_entries,
                row_stride,
                column_stride,
                largest,
                rows,
                column_bits,
                scale,
                limit,
                D,
                BLOCK_D,
                IS_ANCHORS,
                POSITIVE,
                BY_KEY,
                POOLED,
                BOUNDED,
                NARROWS,
                PRECISION,
                WIDEN,
            )
            for digit in range(1, 16):
                # A prefix is unsigned; with its first bit turned it is of the images' order.
                value = (prefix | (digit << shift)) ^ -2147483648
                reached = tl.sum((images >= value[:, None]).to(tl.int32), 1)
                counted += tl.where(digits[None, :] == digit, reached[:, None], 0)

    places = (row_numbers.to(tl.int64) + split * num_anchors)[:, None] * 16 + digits[None, :]
    tl.store(counts + places, counted, mask=inside[:, None])


@triton.jit(do_not_specialize=["num_slots", "num_anchors", "shift"])
def digit_kernel(
    counts,
    num_slots,
    wanted,
    prefixes,
    num_present,
    num_anchors,
    shift,
    BLOCK: tl.constexpr,
):
    """The next 4 bits of each anchor's threshold, put to its prefix; of absent anchors none."""
    numbers = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = numbers < tl.load(num_present)
    digits = tl.arange(0, 16)
    total = tl.zeros([BLOCK, 16], dtype=tl.int32)
    for slot in range(num_slots):
        places = (numbers.to(tl.int64) + slot * num_anchors)[:, None] * 16 + digits[None, :]
        total += tl.load(counts + places, mask=inside[:, None], other=0)
    enough = (total >= tl.load(wanted + numbers, mask=inside, other=1)[:, None]) & (digits > 0)
    digit = tl.sum(enough.to(tl.int32), 1)
    prefix = tl.load(prefixes + numbers, mask=inside, other=0)
    tl.store(prefixes + numbers, prefix | (digit << shift), mask=inside)
