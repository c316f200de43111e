"""The pass over the entries of Z: an attention whose output is the negative part of the gradient.

Queries are anchors, keys and values are contrast entries. Each program computes a partial result of
a block of anchors over a split of the entries: a maximum, Σ exp(s − maximum) and
Σ exp(s − maximum)·k. Exponentials and similarities are to the base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.class_blocks import (
    blocks_of_class,
    full_in,
    full_segment,
    mixed_before,
    mixed_block,
    nonempty_before,
    nonempty_block,
    num_segments,
    overlap,
    split_range,
)
from pixcontrast._info_nce.fused.kernels.tile import (
    is_selected,
    load_vectors,
    multiply,
    similarities,
    store_vectors,
)


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
    WIDEN: tl.constexpr,
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
        weighted = multiply(
            likelihoods.to(entry_tile.dtype), entry_tile, weighted, PRECISION, WIDEN
        )
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
    largest,
    first_classes,
    last_classes,
    block_index,
    num_blocks,
    negative_hardness,
    negative_key,
    positive_hardness,
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
    CHUNK: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MINED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
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
    anchor_ids = first_anchor + tl.arange(0, BLOCK_M)
    is_anchor = anchor_ids < valid_anchors
    anchor_tile = load_vectors(
        anchors, anchor_ids, is_anchor, D, 1, largest, anchors, D, BLOCK_D, True, False
    )
    own_class = tl.load(anchor_classes + anchor_ids, mask=is_anchor, other=-1)[:, None]
    maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    # Without a gradient this is the smallest tensor there can be.
    weighted = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        hardness = tl.load(negative_hardness + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        key = tl.load(negative_key + anchor_ids, mask=is_anchor, other=0)[:, None]
        bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[:, None]

    # The hull holds the blocks whose mask depends on the anchor. The gap is the part of it whose
    # entries are positives of all of these anchors, none of which belongs to Z.
    hull = num_blocks * 0
    hull_stop = num_blocks * 0
    gap = num_blocks * 0
    gap_stop = num_blocks * 0
    if MINED or not ALL:
        low = tl.load(anchor_classes + first_anchor)
        high = tl.load(anchor_classes + tl.minimum(first_anchor + BLOCK_M, valid_anchors) - 1)
        hull, hull_stop = overlap(first_classes, last_classes, num_blocks, low, high, CHUNK)
        if not ALL:
            if low == high:
                gap, gap_stop = blocks_of_class(first_classes, last_classes, num_blocks, low, CHUNK)
    elif IS_ANCHORS:
        hull = tl.minimum(first_anchor // BLOCK_N, num_blocks)
        hull_stop = tl.minimum((first_anchor + BLOCK_M + BLOCK_N - 1) // BLOCK_N, num_blocks)

    num_full = full_in(block_index, 0, num_blocks) - full_in(block_index, hull, hull_stop)
    first, stop = split_range(num_full, split, num_splits)
    for segment in range(num_segments(block_index, num_blocks)):
        segment_start, segment_stop = full_segment(
            block_index, num_blocks, segment, hull, hull_stop, first, stop
        )
        for block in range(segment_start, segment_stop):
            ids = block * BLOCK_N + tl.arange(0, BLOCK_N)
            entry_tile = load_vectors(
                entries,
                ids,
                ids,
                row_stride,
                column_stride,
                largest,
                anchors,
                D,
                BLOCK_D,
                False,
                NARROWS,
            )
            logits = similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION, WIDEN)
            if MINED:
                other_bits = tl.load(entry_bits + ids)[None, :]
                counts = is_selected(logits, hardness, key, bits, other_bits, False)
                logits = tl.where(counts, logits, float("-inf"))
            maximum, total, weighted = _accumulate(
                logits,
                entry_tile,
                maximum,
                total,
                weighted,
                MINED,
                BOUNDED,
                WEIGHTED,
                PRECISION,
                WIDEN,
            )

    if MINED and ALL:
        own_hardness = tl.load(positive_hardness + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        own_key = tl.load(positive_key + anchor_ids, mask=is_anchor, other=0)[:, None]
    # The visits of the second loop: the hull without the gap, then the mixed blocks outside it.
    hull_visit = nonempty_before(block_index, num_blocks, hull)
    gap_visit = nonempty_before(block_index, num_blocks, gap)
    gap_visits = nonempty_before(block_index, num_blocks, gap_stop) - gap_visit
    hull_visits = nonempty_before(block_index, num_blocks, hull_stop) - hull_visit - gap_visits
    mixed_visit = mixed_before(block_index, num_blocks, hull)
    mixed_in_hull = mixed_before(block_index, num_blocks, hull_stop) - mixed_visit
    mixed_visits = mixed_before(block_index, num_blocks, num_blocks) - mixed_in_hull
    first, stop = split_range(hull_visits + mixed_visits, split, num_splits)
    for visit in range(first, stop):
        if visit < hull_visits:
            place = hull_visit + visit
            place += tl.where(place >= gap_visit, gap_visits, 0)
            block = nonempty_block(block_index, num_blocks, place)
        else:
            place = visit - hull_visits
            place += tl.where(place >= mixed_visit, mixed_in_hull, 0)
            block = mixed_block(block_index, num_blocks, place)
        ids = block * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = ids < num_entries
        entry_class = tl.load(entry_classes + ids, mask=inside, other=-1)
        valid = entry_class >= 0
        # Ignored entries may contain NaN; mask them on load because 0 · NaN is NaN.
        entry_tile = load_vectors(
            entries,
            ids,
            valid,
            row_stride,
            column_stride,
            largest,
            anchors,
            D,
            BLOCK_D,
            True,
            NARROWS,
        )
        logits = similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION, WIDEN)
        same = own_class == entry_class[None, :]
        counts = valid[None, :]
        if MINED:
            other_bits = tl.load(entry_bits + ids, mask=inside, other=0)[None, :]
            counts = counts & is_selected(logits, hardness, key, bits, other_bits, False)
        if not ALL:
            counts = counts & (same == 0)
        else:
            if MINED:
                easy = is_selected(logits, own_hardness, own_key, bits, other_bits, True)
                counts = tl.where(same, valid[None, :] & easy, counts)
            if IS_ANCHORS:
                counts = counts & (anchor_ids[:, None] != ids[None, :])
        logits = tl.where(counts, logits, float("-inf"))
        maximum, total, weighted = _accumulate(
            logits, entry_tile, maximum, total, weighted, True, BOUNDED, WEIGHTED, PRECISION, WIDEN
        )

    slots = anchor_ids.to(tl.int64) + split * num_anchors
    if not BOUNDED:
        tl.store(maxima + slots, maximum, mask=is_anchor)
    tl.store(totals + slots, total, mask=is_anchor)
    if WEIGHTED:
        store_vectors(weighted_sums, slots, is_anchor, weighted, D, BLOCK_D)
