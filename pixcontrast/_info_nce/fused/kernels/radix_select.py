"""Find thresholds of mining by radix selection over streamed tiles, in five passes.

The threshold of an anchor is the k-th largest value among its candidates, as an integer of the same
order. Starting from the highest bits, each pass counts how many candidates reach each value of the
next bits, and keeps the largest value that k of them reach.

Three passes find 4 bits each: they compare each candidate with the 15 nonzero values. Few
candidates share these 12 bits with the threshold. Two more passes find 10 bits each: they count
those few in a histogram, by atomic additions. All counts are integers, whose sum does not depend on
the order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile

# Number of digits of the passes with a histogram, and of their bits.
HISTOGRAM, HISTOGRAM_BITS = tl.constexpr(1024), tl.constexpr(10)
# The lowest bit of the other passes.
FIRST_BIT = tl.constexpr(20)


@triton.jit(
    do_not_specialize=[
        "num_anchors",
        "num_entries",
        "num_blocks",
        "first_split",
        "shift",
        "of_positives",
    ]
)
def count_kernel(
    anchors,
    num_anchors,
    entries,
    num_entries,
    survey,
    num_blocks,
    first_split,
    min_hardness,
    prefixes,
    counts,
    shift,
    of_positives,
    settings,
    BY_KEY: tl.constexpr,
):
    """Program (i, k): counts of anchor block i over the k-th split, for each next digit.

    The digit starts at bit `shift`. Counts of few bits are (splits, M, 16), those of a histogram
    (M, 1024). Candidates are compared by hardness (the similarity of a negative, minus that of a
    positive) or, with `BY_KEY`, by their random keys, where smaller keys rank higher. With
    `min_hardness`, only candidates that are at least as hard are counted.
    """
    anchor_block = tl.program_id(0)
    first_anchor = anchor_block * settings.BLOCK_M
    split = tl.program_id(1)
    valid_anchors = tl.load(anchors.num_valid)
    if first_anchor >= valid_anchors:
        return
    rows = tile.load_anchors(anchors, anchor_block, valid_anchors, settings.BLOCK_M, settings)
    anchor_ids, is_anchor = rows[0], rows[1]
    bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[:, None]
    if min_hardness is not None:
        pool_hardness = tile.load(min_hardness, anchor_ids, is_anchor)[:, None]
    prefix = tile.load(prefixes, anchor_ids, is_anchor)
    digits = tl.arange(0, 16)
    counted = tl.zeros([settings.BLOCK_M, 16], dtype=tl.int32)

    # Visit the nonempty blocks with candidates, and leave out a gap without candidates.
    low, high = blocks.class_range(anchors, first_anchor, valid_anchors, settings.BLOCK_M)
    is_positive = of_positives != 0
    if is_positive:
        hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
        gap = hull
        gap_stop = hull
    else:
        hull = num_blocks * 0
        hull_stop = num_blocks
        gap, gap_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=True)
    before_hull, before_gap, in_gap, num_visits = blocks.count_nonempty(
        survey, num_blocks, hull, hull_stop, gap, gap_stop
    )
    first, stop = blocks.split_range(num_visits, split, tl.num_programs(1))
    for visit in range(first, stop):
        index = blocks.skip_gap(before_hull + visit, before_gap, in_gap)
        block = blocks.at(survey, num_blocks, blocks.NONEMPTY, index)
        # With `BY_KEY` and without `min_hardness`, the compiler removes the unused similarities.
        ids, _, hardness, positive, negative, _ = tile.load_pairs(
            rows, entries, block, num_entries, anchors, settings
        )
        candidate = tl.where(is_positive, positive, negative)
        hardness = tl.where(is_positive, -hardness, hardness)
        if BY_KEY:
            other_bits = tile.load(entries.key_bits, ids, ids < num_entries)[None, :]
            values = -1 - tile.mix_bits(bits ^ other_bits)
            if min_hardness is not None:
                candidate = candidate & (hardness >= pool_hardness)
        else:
            # Convert to int32 of the same order. Zeros of both signs are equal.
            values = tl.where(hardness == 0.0, 0.0, hardness).to(tl.int32, bitcast=True)
            values = tl.where(values < 0, values ^ 0x7FFFFFFF, values)
        if shift >= FIRST_BIT:
            # The smallest integer marks other entries: no hardness and no key is mapped to it.
            values = tl.where(candidate, values, -2147483648)
            for digit in range(1, 16):
                # With its highest bit inverted, a prefix is comparable with the values.
                value = (prefix | (digit << shift)) ^ -2147483648
                reached = tl.sum((values >= value[:, None]).to(tl.int32), 1)
                counted += tl.where(digits[None, :] == digit, reached[:, None], 0)
        else:
            unsigned = values ^ -2147483648
            same_prefix = ((unsigned ^ prefix[:, None]) >> (shift + HISTOGRAM_BITS)) == 0
            found = (unsigned >> shift) & (HISTOGRAM - 1)
            bins = counts + anchor_ids.to(tl.int64)[:, None] * HISTOGRAM + found
            hit = candidate & same_prefix & is_anchor[:, None]
            tl.atomic_add(bins, 1, mask=hit, sem="relaxed")

    if shift >= FIRST_BIT:
        slots = anchor_ids.to(tl.int64) + (first_split + split) * num_anchors
        tl.store(counts + slots[:, None] * 16 + digits[None, :], counted, mask=is_anchor[:, None])


@triton.jit(do_not_specialize=["num_anchors", "num_splits", "shift"])
def digit_kernel(
    num_valid,
    num_anchors,
    counts,
    num_splits,
    requested,
    prefixes,
    above,
    shift,
    NUM_DIGITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add the next bits to the prefix of each valid anchor's threshold.

    `above` is the number of candidates whose highest bits are larger than the prefix. A histogram
    is cleared for the next pass.
    """
    ids = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = ids < tl.load(num_valid)
    digits = tl.arange(0, NUM_DIGITS)[None, :]
    larger = tile.load(above, ids, inside)
    total = tl.zeros([BLOCK_M, NUM_DIGITS], dtype=tl.int32)
    for split in range(num_splits):
        slots = (ids.to(tl.int64) + split * num_anchors)[:, None] * NUM_DIGITS + digits
        found = tl.load(counts + slots, mask=inside[:, None], other=0)
        if NUM_DIGITS == HISTOGRAM:
            tl.store(counts + slots, tl.zeros_like(found), mask=inside[:, None])
            # Convert counts of each digit to counts of those that reach it.
            found += (larger + tl.sum(found, 1))[:, None] - tl.cumsum(found, 1)
        total += found
    enough = (total >= tile.load(requested, ids, inside, 1)[:, None]) & (digits > 0)
    digit = tl.sum(enough.to(tl.int32), 1)
    # The count of the next larger digit, which fewer candidates than requested reach.
    beyond = tl.max(tl.where(digits > digit[:, None], total, larger[:, None]), 1)
    tl.store(above + ids, beyond, mask=inside)
    prefix = tile.load(prefixes, ids, inside)
    tl.store(prefixes + ids, prefix | (digit << shift), mask=inside)
