"""The pass over the positives alone: the loss, w, |P| and the gradient's positive part.

Each program takes a block of anchors and a share of the blocks of entries that may hold a positive
of theirs; sorted by class these are few.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.blocks import overlap
from pixcontrast._info_nce.fused.kernels.similarity import (
    fetch,
    multiply,
    selected,
    similarities,
    softplus_and_sigmoid,
)


@triton.jit(do_not_specialize=["num_entries", "num_blocks", "num_anchors"])
def positives_kernel(
    rows,
    row_classes,
    num_present,
    log_sums,
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
    row_bits,
    column_bits,
    counts,
    losses,
    weights,
    pulls,
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
    CLEAN: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Program (i, k): sums of anchor block i over the k-th share of a piece's positives.

    Losses are multiplied by `shrink`, a power of two, so that no sum of finite terms overflows.
    """
    first_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    present = tl.load(num_present)
    if first_row >= present:
        return
    row_numbers = first_row + tl.arange(0, BLOCK_M)
    inside = row_numbers < present
    anchors = fetch(rows, row_numbers, inside, D, 1, largest, rows, D, BLOCK_D, False)
    classes = tl.load(row_classes + row_numbers, mask=inside, other=-1)
    log_sum = tl.load(log_sums + row_numbers, mask=inside, other=0.0)
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    pull = tl.zeros([BLOCK_M, BLOCK_D if WEIGHTED else 1], dtype=tl.float32)
    if MINED:
        hardness = tl.load(positive_hardness + row_numbers, mask=inside, other=0.0)
        key = tl.load(positive_key + row_numbers, mask=inside, other=0)
        bits = tl.load(row_bits + row_numbers, mask=inside, other=0)

    least = tl.load(row_classes + first_row)
    greatest = tl.load(row_classes + tl.minimum(first_row + BLOCK_M, present) - 1)
    first, stop = overlap(first_classes, last_classes, num_blocks, least, greatest, CHUNK)
    # From surveyed blocks to the tiles of this pass.
    first *= TILES
    stop *= TILES
    mine = first + (stop - first) * split // tl.num_programs(1)
    mine_stop = first + (stop - first) * (split + 1) // tl.num_programs(1)
    for block in range(mine, mine_stop):
        numbers = block * BLOCK_N + tl.arange(0, BLOCK_N)
        within = numbers < num_entries
        column_classes = tl.load(entry_classes + numbers, mask=within, other=-1)
        there = column_classes >= 0
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
        positive = there[None, :] & (classes[:, None] == column_classes[None, :])
        if IS_ANCHORS:
            positive = positive & (row_numbers[:, None] != numbers[None, :])
        if MINED:
            other_bits = tl.load(column_bits + numbers, mask=within, other=0)[None, :]
            positive = positive & selected(
                logits, hardness[:, None], key[:, None], bits[:, None], other_bits, True
            )
        count += tl.sum(positive.to(tl.int32), 1)
        if ALL:
            loss += tl.sum(tl.where(positive, logits * shrink, 0.0), 1)
            strength = tl.where(positive, 1.0, 0.0)
        else:
            term, strength = softplus_and_sigmoid(log_sum[:, None] - logits)
            loss += tl.sum(tl.where(positive, term * shrink, 0.0), 1)
            strength = tl.where(positive, strength, 0.0)
            weight += tl.sum(strength, 1)
        if WEIGHTED:
            pull = multiply(strength.to(columns.dtype), columns, pull, PRECISION, WIDEN)

    places = row_numbers.to(tl.int64) + split * num_anchors
    tl.store(counts + places, count, mask=inside)
    tl.store(losses + places, loss, mask=inside)
    if not ALL:
        tl.store(weights + places, weight, mask=inside)
    if WEIGHTED:
        components = tl.arange(0, BLOCK_D)
        map_places = places[:, None] * D + components[None, :]
        within_map = inside[:, None] & (components < D)[None, :]
        tl.store(pulls + map_places, pull, mask=within_map)
