"""Merge partial results in a fixed order into the losses and gradients of the anchors."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_splits", "num_anchors"])
def lse_kernel(
    maxima,
    totals,
    lse,
    num_splits,
    num_anchors,
    num_valid,
    BLOCK: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Compute Z of each anchor to the base 2 over all splits; −∞ if no entry belongs to it."""
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < tl.load(num_valid)
    maximum = tl.zeros([BLOCK], dtype=tl.float32)
    if not BOUNDED:
        maximum += float("-inf")
        for split in range(num_splits):
            slots = ids.to(tl.int64) + split * num_anchors
            partial = tl.load(maxima + slots, mask=inside, other=float("-inf"))
            maximum = tl.maximum(maximum, partial)
        maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in range(num_splits):
        slots = ids.to(tl.int64) + split * num_anchors
        partial = tl.load(totals + slots, mask=inside, other=0.0)
        if not BOUNDED:
            partial *= tl.exp2(tl.load(maxima + slots, mask=inside, other=0.0) - maximum)
        total += partial
    result = tl.log2(tl.where(total > 0, total, 1.0)) + maximum
    tl.store(lse + ids, tl.where(total > 0, result, float("-inf")), mask=inside)


@triton.jit(do_not_specialize=["num_splits", "num_weighted", "num_sums", "num_anchors"])
def merge_kernel(
    order,
    num_valid,
    lse,
    maxima,
    weighted_sums,
    num_weighted,
    counts,
    losses,
    weights,
    positive_sums,
    num_splits,
    num_sums,
    out_losses,
    out_has_positive,
    out_lse,
    out_weight,
    out_inv_num_positives,
    out_gradient,
    num_anchors,
    expand,
    inverse_temperature,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """Program (i, d): the results of anchor block i, and block d of its gradient's components.

    Splits with a weighted sum come first. `expand` is 1 / `shrink` of the positives' pass. Results
    are stored in the caller's order.
    """
    first_anchor = tl.program_id(0) * BLOCK_M
    valid_anchors = tl.load(num_valid)
    if first_anchor >= valid_anchors:
        return
    ids = first_anchor + tl.arange(0, BLOCK_M)
    inside = ids < valid_anchors
    z = tl.load(lse + ids, mask=inside, other=0.0)
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    for split in range(num_splits):
        slots = ids.to(tl.int64) + split * num_anchors
        count += tl.load(counts + slots, mask=inside, other=0)
        loss += tl.load(losses + slots, mask=inside, other=0.0)
        if not ALL:
            weight += tl.load(weights + slots, mask=inside, other=0.0)
    has_positive = count > 0
    inverse = tl.where(has_positive, 1.0 / tl.maximum(count, 1).to(tl.float32), 0.0)
    loss = loss * (expand * inverse) * 0.6931471805599453
    if ALL:
        loss = tl.where(has_positive, z * 0.6931471805599453 - loss, 0.0)
        loss = tl.where(loss < 0.0, 0.0, loss)  # not below 0 by rounding; NaN stays
        weight = tl.where(has_positive, 1.0, 0.0)
    else:
        weight = weight * inverse
    out_ids = tl.load(order + ids, mask=inside, other=0)
    if tl.program_id(1) == 0:
        tl.store(out_losses + out_ids, loss, mask=inside)
        tl.store(out_has_positive + out_ids, has_positive, mask=inside)
        tl.store(out_lse + out_ids, z, mask=inside)
        tl.store(out_weight + out_ids, weight, mask=inside)
        tl.store(out_inv_num_positives + out_ids, inverse, mask=inside)
    if WEIGHTED:
        components = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside_map = inside[:, None] & (components < D)[None, :]
        negative_mean = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        # Z is −∞ without an entry; all weighted sums are 0 then.
        reference = tl.where(z == float("-inf"), 0.0, z)
        for split in range(num_weighted):
            slots = ids.to(tl.int64) + split * num_anchors
            pointers = weighted_sums + slots[:, None] * D + components[None, :]
            if BOUNDED:
                factor = tl.exp2(-reference)
            else:
                factor = tl.exp2(tl.load(maxima + slots, mask=inside, other=0.0) - reference)
            negative_mean += tl.load(pointers, mask=inside_map, other=0.0) * factor[:, None]
        positive_sum = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for split in range(num_sums):
            slots = ids.to(tl.int64) + split * num_anchors
            pointers = positive_sums + slots[:, None] * D + components[None, :]
            positive_sum += tl.load(pointers, mask=inside_map, other=0.0)
        gradient = weight[:, None] * negative_mean - inverse[:, None] * positive_sum
        out_pointers = out_gradient + out_ids.to(tl.int64)[:, None] * D + components[None, :]
        tl.store(out_pointers, gradient * inverse_temperature, mask=inside_map)
