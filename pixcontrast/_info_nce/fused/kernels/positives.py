"""The pass over the positives: the loss, w, |P| and the positive part of the gradient.

Each program computes a block of anchors against a split of the blocks that may have their
positives. These are few if the entries are sorted by class. A second kernel merges the partial
results of both passes in a fixed order into the losses and the gradient of the anchors.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit
def add_positives(logits, positive, z, count, loss, weight, shrink, settings):
    """Add the positives of a tile to the sums of each anchor; also return σ(Z − s), or 1."""
    count += tl.sum(positive.to(tl.int32), 1)
    if settings.ALL:
        loss += tl.sum(tl.where(positive, logits * shrink, 0.0), 1)
        strength = tl.where(positive, 1.0, 0.0)
    else:
        term, strength = tile.softplus_and_sigmoid(z - logits)
        loss += tl.sum(tl.where(positive, term * shrink, 0.0), 1)
        strength = tl.where(positive, strength, 0.0)
        weight += tl.sum(strength, 1)
    return count, loss, weight, strength


@triton.jit
def complete(z, count, loss, weight, expand, ALL: tl.constexpr):
    """Return L, whether there is a positive, w and 1/|P| from the sums over the positives."""
    has_positive = count > 0
    inverse = tl.where(has_positive, 1.0 / tl.maximum(count, 1).to(tl.float32), 0.0)
    loss = loss * (expand * inverse) * 0.6931471805599453
    if ALL:
        loss = tl.where(has_positive, z * 0.6931471805599453 - loss, 0.0)
        loss = tl.where(loss < 0.0, 0.0, loss)  # not below 0 by rounding; NaN stays
        weight = tl.where(has_positive, 1.0, 0.0)
    else:
        weight = weight * inverse
    return loss, has_positive, weight, inverse


@triton.jit
def store_results(result, out_ids, ids, inside, z, completed):
    """Store what `complete` returns: losses at `out_ids`, and the statistics, with Z, at `ids`."""
    loss, has_positive, weight, inverse = completed
    tl.store(result.losses + out_ids, loss, mask=inside)
    tl.store(result.has_positive + out_ids, has_positive, mask=inside)
    tl.store(result.statistics.lse + ids, z, mask=inside)
    tl.store(result.statistics.weight + ids, weight, mask=inside)
    tl.store(result.statistics.inv_num_positives + ids, inverse, mask=inside)


@triton.jit(do_not_specialize=["num_anchors", "num_entries", "num_blocks", "first_split"])
def positives_kernel(
    anchors,
    num_anchors,
    entries,
    num_entries,
    survey,
    num_blocks,
    first_split,
    thresholds,
    lse,
    sums,
    shrink,
    settings,
    TILES: tl.constexpr,
):
    """Program (i, k): sums of anchor block i over the k-th split of its positives.

    Losses are multiplied by `shrink`, a power of two, so that a sum of finite terms is finite. A
    block of the survey consists of TILES tiles of this pass.
    """
    anchor_block = tl.program_id(0)
    first_anchor = anchor_block * settings.BLOCK_M
    split = tl.program_id(1)
    valid_anchors = tl.load(anchors.num_valid)
    if first_anchor >= valid_anchors:
        return
    rows = tile.load_anchors(anchors, anchor_block, valid_anchors, settings.BLOCK_M, settings)
    anchor_ids, is_anchor = rows[0], rows[1]
    z = tile.load(lse, anchor_ids, is_anchor)[:, None]
    count = tl.zeros([settings.BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    num_components: tl.constexpr = settings.BLOCK_D if settings.WEIGHTED else 1
    positive_sum = tl.zeros([settings.BLOCK_M, num_components], dtype=tl.float32)
    if thresholds is not None:
        threshold = tile.load(thresholds.positive_logit, anchor_ids, is_anchor)[:, None]
        key = tile.load(thresholds.positive_key, anchor_ids, is_anchor)[:, None]
        bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[:, None]

    low, high = blocks.class_range(anchors, first_anchor, valid_anchors, settings.BLOCK_M)
    hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
    first, stop = blocks.split_range((hull_stop - hull) * TILES, split, tl.num_programs(1))
    for visit in range(hull * TILES + first, hull * TILES + stop):
        ids, entry_tile, logits, positive, _, _ = tile.load_pairs(
            rows, entries, visit, num_entries, anchors, settings
        )
        if thresholds is not None:
            other_bits = tile.load(entries.key_bits, ids, ids < num_entries)[None, :]
            positive &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=True)
        count, loss, weight, strength = add_positives(
            logits, positive, z, count, loss, weight, shrink, settings
        )
        if settings.WEIGHTED:
            positive_sum = tile.multiply(strength, entry_tile, positive_sum, settings.PRECISION)

    slots = anchor_ids.to(tl.int64) + (first_split + split) * num_anchors
    tl.store(sums.counts + slots, count, mask=is_anchor)
    tl.store(sums.losses + slots, loss, mask=is_anchor)
    if not settings.ALL:
        tl.store(sums.weights + slots, weight, mask=is_anchor)
    if settings.WEIGHTED:
        tile.store_vectors(sums.positive_sums, slots, is_anchor, positive_sum, settings)


@triton.jit(do_not_specialize=["num_anchors", "num_weighted", "num_splits", "num_sums"])
def merge_kernel(
    num_valid,
    num_anchors,
    order,
    lse,
    partials,
    num_weighted,
    sums,
    num_splits,
    num_sums,
    expand,
    result,
    inverse_temperature,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Program (i, d): the results of anchor block i, and block d of its gradient's components.

    Splits with a weighted sum come first. `expand` is 1 / `shrink` of the positives' pass. Results
    are stored in the caller's order, statistics in that of the sorted anchors. They are zeros for
    ignored anchors.
    """
    ids = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = ids < tl.load(num_valid)
    exists = ids < num_anchors
    z = tile.load(lse, ids, inside)
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    for split in range(num_splits):
        slots = ids.to(tl.int64) + split * num_anchors
        count += tile.load(sums.counts, slots, inside)
        loss += tile.load(sums.losses, slots, inside)
        if not ALL:
            weight += tile.load(sums.weights, slots, inside)
    out_ids = tile.load(order, ids, exists)
    completed = complete(z, count, loss, weight, expand, ALL)
    if tl.program_id(1) == 0:
        store_results(result, out_ids, ids, exists, z, completed)
    if result.anchor_gradient is not None:
        components = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside_map = inside[:, None] & (components < D)[None, :]
        negative_mean = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        # Z is −∞ without an entry, and then all weighted sums are 0.
        reference = tl.where(z == float("-inf"), 0.0, z)
        for split in range(num_weighted):
            slots = ids.to(tl.int64) + split * num_anchors
            pointers = partials.weighted_sums + slots[:, None] * D + components[None, :]
            if BOUNDED:
                factor = tl.exp2(-reference)
            else:
                maximum = tile.load(partials.maxima, slots, inside)
                factor = tl.exp2(maximum - reference)
            negative_mean += tl.load(pointers, mask=inside_map, other=0.0) * factor[:, None]
        positive_sum = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for split in range(num_sums):
            slots = ids.to(tl.int64) + split * num_anchors
            pointers = sums.positive_sums + slots[:, None] * D + components[None, :]
            positive_sum += tl.load(pointers, mask=inside_map, other=0.0)
        _, _, weight, inverse = completed
        gradient = weight[:, None] * negative_mean - inverse[:, None] * positive_sum
        out = result.anchor_gradient + out_ids.to(tl.int64)[:, None] * D
        gradient *= inverse_temperature
        out_map = exists[:, None] & (components < D)[None, :]
        tl.store(out + components[None, :], gradient, mask=out_map)
