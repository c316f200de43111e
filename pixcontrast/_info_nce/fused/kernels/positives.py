"""The pass over the positives: the loss, w, |P| and the positive part of the gradient.

Each program takes a block of anchors and a split of the blocks that may hold their positives, which
are few if the entries are sorted by class.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.class_blocks import overlap, split_range
from pixcontrast._info_nce.fused.kernels.tile import (
    is_selected,
    load_vectors,
    multiply,
    similarities,
    softplus_and_sigmoid,
    store_vectors,
)


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
    largest,
    first_classes,
    last_classes,
    num_blocks,
    positive_hardness,
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
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    MINED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
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
    anchor_ids = first_anchor + tl.arange(0, BLOCK_M)
    is_anchor = anchor_ids < valid_anchors
    anchor_tile = load_vectors(
        anchors, anchor_ids, is_anchor, D, 1, largest, anchors, D, BLOCK_D, True, False
    )
    own_class = tl.load(anchor_classes + anchor_ids, mask=is_anchor, other=-1)[:, None]
    z = tl.load(lse + anchor_ids, mask=is_anchor, other=0.0)[:, None]
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    positive_sum = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        hardness = tl.load(positive_hardness + anchor_ids, mask=is_anchor, other=0.0)[:, None]
        key = tl.load(positive_key + anchor_ids, mask=is_anchor, other=0)[:, None]
        bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[:, None]

    low = tl.load(anchor_classes + first_anchor)
    high = tl.load(anchor_classes + tl.minimum(first_anchor + BLOCK_M, valid_anchors) - 1)
    hull, hull_stop = overlap(first_classes, last_classes, num_blocks, low, high, CHUNK)
    first, stop = split_range((hull_stop - hull) * TILES, split, tl.num_programs(1))
    for tile in range(hull * TILES + first, hull * TILES + stop):
        ids = tile * BLOCK_N + tl.arange(0, BLOCK_N)
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
        positive = valid[None, :] & (own_class == entry_class[None, :])
        if IS_ANCHORS:
            positive = positive & (anchor_ids[:, None] != ids[None, :])
        if MINED:
            other_bits = tl.load(entry_bits + ids, mask=inside, other=0)[None, :]
            positive = positive & is_selected(logits, hardness, key, bits, other_bits, True)
        count += tl.sum(positive.to(tl.int32), 1)
        if ALL:
            loss += tl.sum(tl.where(positive, logits * shrink, 0.0), 1)
            strength = tl.where(positive, 1.0, 0.0)
        else:
            term, strength = softplus_and_sigmoid(z - logits)
            loss += tl.sum(tl.where(positive, term * shrink, 0.0), 1)
            strength = tl.where(positive, strength, 0.0)
            weight += tl.sum(strength, 1)
        if WEIGHTED:
            positive_sum = multiply(
                strength.to(entry_tile.dtype), entry_tile, positive_sum, PRECISION, WIDEN
            )

    slots = anchor_ids.to(tl.int64) + split * num_anchors
    tl.store(counts + slots, count, mask=is_anchor)
    tl.store(losses + slots, loss, mask=is_anchor)
    if not ALL:
        tl.store(weights + slots, weight, mask=is_anchor)
    if WEIGHTED:
        store_vectors(positive_sums, slots, is_anchor, positive_sum, D, BLOCK_D)
