"""The pass over the positives: the loss, w, |P| and the positive part of the gradient.

Each program takes a block of anchors and a split of the blocks that may hold their positives, which
are few if the entries are sorted by class.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors"])
def positives_kernel(
    anchors,
    anchor_classes,
    num_valid,
    lse,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    survey,
    num_blocks,
    positive_logit,
    positive_key,
    anchor_bits,
    entry_bits,
    counts,
    losses,
    weights,
    positive_sums,
    num_anchors,
    scale,
    limit,
    shrink,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MINED: tl.constexpr,
    largest,
    PRECISION: tl.constexpr,
):
    """Program (i, k): sums of anchor block i over the k-th split of its positives.

    Losses are multiplied by `shrink`, a power of two, so that a sum of finite terms is finite. A
    block of the survey holds TILES tiles of this pass.
    """
    first_anchor = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    valid_anchors = tl.load(num_valid)
    if first_anchor >= valid_anchors:
        return
    anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
        anchors, anchor_classes, first_anchor, valid_anchors, BLOCK_M, D, BLOCK_D
    )
    z = tl.load(lse + anchor_ids, mask=is_anchor, other=0.0)[:, None]
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    positive_sum = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        threshold = tl.load(positive_logit + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        key = tl.load(positive_key + anchor_ids, mask=is_anchor, other=0)[:, None]
        bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[:, None]

    low, high = blocks.class_range(anchor_classes, first_anchor, valid_anchors, BLOCK_M)
    hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
    first, stop = blocks.split_range((hull_stop - hull) * TILES, split, tl.num_programs(1))
    for visit in range(hull * TILES + first, hull * TILES + stop):
        ids, valid, entry_class = tile.load_classes(entry_classes, visit, num_entries, BLOCK_N)
        entry_tile = tile.load_entries(
            entries, ids, valid, row_stride, column_stride, anchors, D, BLOCK_D, largest
        )
        logits = tile.similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION)
        positive, _, _ = tile.masks(
            valid[None, :], anchor_class, entry_class, anchor_ids, ids, IS_ANCHORS
        )
        if MINED:
            other_bits = tl.load(entry_bits + ids, mask=ids < num_entries, other=0)[None, :]
            positive &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=True)
        count += tl.sum(positive.to(tl.int32), 1)
        if ALL:
            loss += tl.sum(tl.where(positive, logits * shrink, 0.0), 1)
            strength = tl.where(positive, 1.0, 0.0)
        else:
            term, strength = tile.softplus_and_sigmoid(z - logits)
            loss += tl.sum(tl.where(positive, term * shrink, 0.0), 1)
            strength = tl.where(positive, strength, 0.0)
            weight += tl.sum(strength, 1)
        if WEIGHTED:
            positive_sum = tile.multiply(strength, entry_tile, positive_sum, PRECISION)

    slots = anchor_ids.to(tl.int64) + split * num_anchors
    tl.store(counts + slots, count, mask=is_anchor)
    tl.store(losses + slots, loss, mask=is_anchor)
    if not ALL:
        tl.store(weights + slots, weight, mask=is_anchor)
    if WEIGHTED:
        tile.store_vectors(positive_sums, slots, is_anchor, positive_sum, D, BLOCK_D)
