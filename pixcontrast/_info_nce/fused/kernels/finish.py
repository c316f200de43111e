"""Partial results merged, in a fixed order, into what is returned for each anchor."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_slots", "num_anchors"])
def log_sum_kernel(
    maxima,
    totals,
    log_sums,
    num_slots,
    num_anchors,
    num_present,
    BLOCK: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Z to the base 2 of every anchor, over all slots; −∞ for one that has seen nothing."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < tl.load(num_present)
    maximum = tl.zeros([BLOCK], dtype=tl.float32)
    if not BOUNDED:
        maximum += float("-inf")
        for slot in range(num_slots):
            places = rows.to(tl.int64) + slot * num_anchors
            maximum = tl.maximum(
                maximum, tl.load(maxima + places, mask=inside, other=float("-inf"))
            )
        maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for slot in range(num_slots):
        places = rows.to(tl.int64) + slot * num_anchors
        part = tl.load(totals + places, mask=inside, other=0.0)
        if not BOUNDED:
            part *= tl.exp2(tl.load(maxima + places, mask=inside, other=0.0) - maximum)
        total += part
    log_sum = tl.log2(tl.where(total > 0, total, 1.0)) + maximum
    tl.store(log_sums + rows, tl.where(total > 0, log_sum, float("-inf")), mask=inside)


@triton.jit(
    do_not_specialize=[
        "num_negative_slots",
        "num_positive_slots",
        "num_pull_slots",
        "num_anchors",
    ]
)
def finish_kernel(
    order,
    num_present,
    log_sums,
    maxima,
    weighted_sums,
    num_negative_slots,
    counts,
    losses,
    weights,
    pulls,
    num_positive_slots,
    num_pull_slots,
    out_losses,
    out_has_positive,
    out_log_sums,
    out_weights,
    out_shares,
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
    """Program (i, d): anchor block i, and its gradient's components of block d.

    Slots that hold a weighted sum stand first. `expand` is 1 / `shrink` of the positives' pass.
    """
    first_row = tl.program_id(0) * BLOCK_M
    present = tl.load(num_present)
    if first_row >= present:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    inside = rows < present
    log_sum = tl.load(log_sums + rows, mask=inside, other=0.0)
    count = tl.zeros([BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([BLOCK_M], dtype=tl.float32)
    for slot in range(num_positive_slots):
        places = rows.to(tl.int64) + slot * num_anchors
        count += tl.load(counts + places, mask=inside, other=0)
        loss += tl.load(losses + places, mask=inside, other=0.0)
        if not ALL:
            weight += tl.load(weights + places, mask=inside, other=0.0)
    has_positive = count > 0
    share = tl.where(has_positive, 1.0 / tl.maximum(count, 1).to(tl.float32), 0.0)
    loss = loss * (expand * share) * 0.6931471805599453
    if ALL:
        loss = tl.where(has_positive, log_sum * 0.6931471805599453 - loss, 0.0)
        weight = tl.where(has_positive, 1.0, 0.0)
    else:
        weight = weight * share
    places = tl.load(order + rows, mask=inside, other=0)
    if tl.program_id(1) == 0:
        tl.store(out_losses + places, loss, mask=inside)
        tl.store(out_has_positive + places, has_positive, mask=inside)
        tl.store(out_log_sums + places, log_sum, mask=inside)
        tl.store(out_weights + places, weight, mask=inside)
        tl.store(out_shares + places, share, mask=inside)
    if WEIGHTED:
        components = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        within = inside[:, None] & (components < D)[None, :]
        pushed = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        # Without an entry Z is −∞, and there is nothing to weigh.
        reference = tl.where(log_sum == float("-inf"), 0.0, log_sum)
        for slot in range(num_negative_slots):
            slot_rows = rows.to(tl.int64) + slot * num_anchors
            map_places = slot_rows[:, None] * D + components[None, :]
            part = tl.load(weighted_sums + map_places, mask=within, other=0.0)
            if BOUNDED:
                factor = tl.exp2(-reference)
            else:
                factor = tl.exp2(tl.load(maxima + slot_rows, mask=inside, other=0.0) - reference)
            pushed += part * factor[:, None]
        pulled = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        for slot in range(num_pull_slots):
            slot_rows = rows.to(tl.int64) + slot * num_anchors
            map_places = slot_rows[:, None] * D + components[None, :]
            pulled += tl.load(pulls + map_places, mask=within, other=0.0)
        gradient = (weight[:, None] * pushed - share[:, None] * pulled) * inverse_temperature
        out_places = places.to(tl.int64)[:, None] * D + components[None, :]
        tl.store(out_gradient + out_places, gradient, mask=within)
