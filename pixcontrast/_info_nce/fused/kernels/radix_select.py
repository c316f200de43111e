"""Thresholds of mining by radix selection over streamed tiles, four bits at a time from the top.

The threshold of an anchor is the k-th largest value among its candidates, as an integer of the same
order. Each pass counts how many candidates reach each of the 15 values that the next 4 bits could
make, and keeps the largest value that k of them reach. Eight passes determine 32 bits exactly. Only
counts are written: integers, whose sum does not depend on the order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors", "shift"])
def count_kernel(
    anchors,
    anchor_classes,
    num_valid,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    survey,
    num_blocks,
    min_hardness,
    anchor_bits,
    entry_bits,
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
    IS_ANCHORS: tl.constexpr,
    POSITIVE: tl.constexpr,
    BY_KEY: tl.constexpr,
    POOLED: tl.constexpr,
    BOUNDED: tl.constexpr,
    largest,
    PRECISION: tl.constexpr,
):
    """Program (i, k): for anchor block i and the k-th split, the counts for each next digit.

    Candidates are ordered by hardness (a negative's similarity, the opposite of a positive's), or
    `BY_KEY` by their random keys, smaller keys first; `POOLED` leaves only those that are at least
    as hard as `min_hardness`.
    """
    first_anchor = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    valid_anchors = tl.load(num_valid)
    if first_anchor >= valid_anchors:
        return
    anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
        anchors, anchor_classes, first_anchor, valid_anchors, BLOCK_M, D, BLOCK_D
    )
    bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[:, None]
    pool_hardness = tl.load(min_hardness + anchor_ids, mask=is_anchor, other=0.0)[:, None]
    prefix = tl.load(prefixes + anchor_ids, mask=is_anchor, other=0)
    digits = tl.arange(0, 16)
    counted = tl.zeros([BLOCK_M, 16], dtype=tl.int32)

    # The blocks with candidates that are not empty, but for a gap without candidates.
    low, high = blocks.class_range(anchor_classes, first_anchor, valid_anchors, BLOCK_M)
    if POSITIVE:
        hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
        gap = hull
        gap_stop = hull
    else:
        hull = num_blocks * 0
        hull_stop = num_blocks
        gap, gap_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=True)
    before_hull, before_gap, in_gap, num_visits = blocks.nonempty_places(
        survey, num_blocks, hull, hull_stop, gap, gap_stop
    )
    first, stop = blocks.split_range(num_visits, split, tl.num_programs(1))
    for visit in range(first, stop):
        place = blocks.skip_gap(before_hull + visit, before_gap, in_gap)
        block = blocks.nonempty_block(survey, num_blocks, place)
        ids, valid, entry_class = tile.load_classes(entry_classes, block, num_entries, BLOCK_N)
        positive, negative, _ = tile.masks(
            valid[None, :], anchor_class, entry_class, anchor_ids, ids, IS_ANCHORS
        )
        candidate = positive if POSITIVE else negative
        if POOLED or not BY_KEY:
            entry_tile = tile.load_entries(
                entries, ids, valid, row_stride, column_stride, anchors, D, BLOCK_D, largest
            )
            hardness = tile.similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION)
            if POSITIVE:
                hardness = -hardness
        if BY_KEY:
            other_bits = tl.load(entry_bits + ids, mask=ids < num_entries, other=0)[None, :]
            values = -1 - tile.mix_bits(bits ^ other_bits)
            if POOLED:
                candidate = candidate & (hardness >= pool_hardness)
        else:
            # As int32 of the same order. Zeros of both signs are equal.
            values = tl.where(hardness == 0.0, 0.0, hardness).to(tl.int32, bitcast=True)
            values = tl.where(values < 0, values ^ 0x7FFFFFFF, values)
        # The smallest integer stands for no candidate: no value and no key is mapped to it.
        values = tl.where(candidate, values, -2147483648)
        for digit in range(1, 16):
            # A prefix is unsigned; with its first bit inverted it has the order of the values.
            value = (prefix | (digit << shift)) ^ -2147483648
            reached = tl.sum((values >= value[:, None]).to(tl.int32), 1)
            counted += tl.where(digits[None, :] == digit, reached[:, None], 0)

    slots = (anchor_ids.to(tl.int64) + split * num_anchors)[:, None] * 16 + digits[None, :]
    tl.store(counts + slots, counted, mask=is_anchor[:, None])


@triton.jit(do_not_specialize=["num_splits", "num_anchors", "shift"])
def digit_kernel(
    counts, num_splits, requested, prefixes, num_valid, num_anchors, shift, BLOCK: tl.constexpr
):
    """Add the next 4 bits to the prefix of each valid anchor's threshold."""
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < tl.load(num_valid)
    digits = tl.arange(0, 16)
    total = tl.zeros([BLOCK, 16], dtype=tl.int32)
    for split in range(num_splits):
        slots = (ids.to(tl.int64) + split * num_anchors)[:, None] * 16 + digits[None, :]
        total += tl.load(counts + slots, mask=inside[:, None], other=0)
    enough = (total >= tl.load(requested + ids, mask=inside, other=1)[:, None]) & (digits > 0)
    digit = tl.sum(enough.to(tl.int32), 1)
    prefix = tl.load(prefixes + ids, mask=inside, other=0)
    tl.store(prefixes + ids, prefix | (digit << shift), mask=inside)
