"""The pass over the entries of Z: an attention whose output is the negative part of the gradient.

Queries are anchors, keys and values are contrast entries. Each program computes a partial result of
a block of anchors over a split of the entries: a maximum, Σ exp(s − maximum) and
Σ exp(s − maximum)·k. Exponentials and similarities are to the base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit
def _accumulate(
    logits,
    entry_tile,
    maximum,
    total,
    weighted,
    MASKED: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Merge a tile of similarities into a partial result. Masked similarities are −∞."""
    if BOUNDED:
        likelihoods = tl.exp2(logits)
    else:
        raised = tl.maximum(maximum, tl.max(logits, 1))
        reference = raised
        if MASKED:
            # exp2(−∞ − −∞) is NaN: a row without entries so far is kept relative to 0.
            reference = tl.where(raised == float("-inf"), 0.0, raised)
        rescaled = tl.exp2(maximum - reference)
        likelihoods = tl.exp2(logits - reference[:, None])
        total = total * rescaled
        if WEIGHTED:
            weighted = weighted * rescaled[:, None]
        maximum = raised
    total += tl.sum(likelihoods, 1)
    if WEIGHTED:
        weighted = tile.multiply(likelihoods, entry_tile, weighted, PRECISION)
    return maximum, total, weighted


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors"])
def denominator_kernel(
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
    negative_logit,
    negative_key,
    positive_logit,
    positive_key,
    anchor_bits,
    entry_bits,
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
    IS_ANCHORS: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MINED: tl.constexpr,
    largest,
    PRECISION: tl.constexpr,
):
    """Program (i, k): the partial result of anchor block i over the k-th split of the entries.

    The first loop visits full blocks in which every entry belongs to Z of every anchor; they need
    no mask. The second loop visits all other blocks that are not empty.
    """
    first_anchor = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    valid_anchors = tl.load(num_valid)
    if first_anchor >= valid_anchors:
        return
    anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
        anchors, anchor_classes, first_anchor, valid_anchors, BLOCK_M, D, BLOCK_D
    )
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    # Without a gradient this is the smallest tensor there can be.
    weighted = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        threshold = tl.load(negative_logit + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        key = tl.load(negative_key + anchor_ids, mask=is_anchor, other=0)[:, None]
        bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[:, None]

    # The hull holds the blocks whose mask depends on the anchor. The gap is the part of it whose
    # entries are positives of all of these anchors, none of which belongs to Z.
    hull = num_blocks * 0
    hull_stop = num_blocks * 0
    gap = num_blocks * 0
    gap_stop = num_blocks * 0
    if MINED or not ALL:
        low, high = blocks.class_range(anchor_classes, first_anchor, valid_anchors, BLOCK_M)
        hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
        if not ALL:
            gap, gap_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=True)
    elif IS_ANCHORS:
        hull = tl.minimum(first_anchor // BLOCK_N, num_blocks)
        hull_stop = tl.minimum((first_anchor + BLOCK_M + BLOCK_N - 1) // BLOCK_N, num_blocks)

    num_full, num_mixed = blocks.counts_before(survey, num_blocks, num_blocks)
    full_before, mixed_before = blocks.counts_before(survey, num_blocks, hull)
    full_in_hull, mixed_in_hull = blocks.counts_before(survey, num_blocks, hull_stop)
    full_in_hull -= full_before
    mixed_in_hull -= mixed_before
    first, stop = blocks.split_range(num_full - full_in_hull, split, num_splits)
    for segment in range(blocks.num_segments(survey, num_blocks)):
        segment_start, segment_stop = blocks.full_segment(
            survey, num_blocks, segment, hull, hull_stop, full_in_hull, first, stop
        )
        for block in range(segment_start, segment_stop):
            ids = block * BLOCK_N + tl.arange(0, BLOCK_N)
            entry_tile = tile.load_entries(
                entries, ids, None, row_stride, column_stride, anchors, D, BLOCK_D, largest
            )
            logits = tile.similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION)
            if MINED:
                other_bits = tl.load(entry_bits + ids)[None, :]
                counts = tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
                logits = tl.where(counts, logits, float("-inf"))
            maximum, total, weighted = _accumulate(
                logits, entry_tile, maximum, total, weighted, MINED, BOUNDED, WEIGHTED, PRECISION
            )

    if MINED and ALL:
        own_threshold = tl.load(positive_logit + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        own_key = tl.load(positive_key + anchor_ids, mask=is_anchor, other=0)[:, None]
    # The visits of the second loop: the hull without the gap, then the mixed blocks outside it.
    before_hull, before_gap, in_gap, hull_visits = blocks.nonempty_places(
        survey, num_blocks, hull, hull_stop, gap, gap_stop
    )
    num_visits = hull_visits + num_mixed - mixed_in_hull
    first, stop = blocks.split_range(num_visits, split, num_splits)
    for visit in range(first, stop):
        if visit < hull_visits:
            place = blocks.skip_gap(before_hull + visit, before_gap, in_gap)
            block = blocks.nonempty_block(survey, num_blocks, place)
        else:
            place = blocks.skip_gap(visit - hull_visits, mixed_before, mixed_in_hull)
            block = blocks.mixed_block(survey, num_blocks, place)
        ids, valid, entry_class = tile.load_classes(entry_classes, block, num_entries, BLOCK_N)
        entry_tile = tile.load_entries(
            entries, ids, valid, row_stride, column_stride, anchors, D, BLOCK_D, largest
        )
        logits = tile.similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION)
        positive, negative, pair = tile.masks(
            valid[None, :], anchor_class, entry_class, anchor_ids, ids, IS_ANCHORS
        )
        if MINED:
            other_bits = tl.load(entry_bits + ids, mask=ids < num_entries, other=0)[None, :]
            negative &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
            if ALL:
                positive &= tile.is_selected(
                    logits, own_threshold, own_key, bits, other_bits, POSITIVE=True
                )
            pair = positive | negative
        counts = pair if ALL else negative
        logits = tl.where(counts, logits, float("-inf"))
        maximum, total, weighted = _accumulate(
            logits, entry_tile, maximum, total, weighted, True, BOUNDED, WEIGHTED, PRECISION
        )

    slots = anchor_ids.to(tl.int64) + split * num_anchors
    if not BOUNDED:
        tl.store(maxima + slots, maximum, mask=is_anchor)
    tl.store(totals + slots, total, mask=is_anchor)
    if WEIGHTED:
        tile.store_vectors(weighted_sums, slots, is_anchor, weighted, D, BLOCK_D)
