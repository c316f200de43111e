"""The pass that entries with a gradient need, and the anchors against themselves.

Each program takes a block of entries and a share of the anchors, whose Z, w and 1/|P| are known.
With the anchors as entries of each other, the coefficients of both roles, G + Gᵀ, are made of one
product: s_ij is s_ji, but for the last bit, on which under mining too much hangs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels.similarity import (
    fetch,
    multiply,
    selected,
    similarities,
    softplus_and_sigmoid,
)


@triton.jit
def _derivative(logits, positive, negative, log_sum, weight, share, upstream, ALL: tl.constexpr):
    """∂L/∂s times the upstream gradient: what `coefficients` is in the tiled form."""
    # No likelihood is above 1; of what does not count exp2 might overflow.
    likelihood = tl.exp2(tl.minimum(logits - log_sum, 0.0))
    if ALL:
        pushed = tl.where(positive | negative, likelihood * weight, 0.0)
        pulled = tl.where(positive, share, 0.0)
    else:
        _, sigmoid = softplus_and_sigmoid(log_sum - logits)
        pushed = tl.where(negative, likelihood * weight, 0.0)
        pulled = tl.where(positive, sigmoid * share, 0.0)
    return (pushed - pulled) * upstream


@triton.jit(do_not_specialize=["num_entries", "num_shares"])
def entries_kernel(
    rows,
    row_classes,
    num_present,
    log_sums,
    weights,
    shares,
    upstreams,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    largest,
    negative_hardness,
    negative_key,
    positive_hardness,
    positive_key,
    row_bits,
    column_bits,
    gradients,
    num_shares,
    scale,
    limit,
    inverse_temperature,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_ANCHORS: tl.constexpr,
    BOTH_ROLES: tl.constexpr,
    ALL: tl.constexpr,
    BOUNDED: tl.constexpr,
    MINED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Program (j, k): the gradient of entry block j through the k-th share of the anchors.

    `IN_FLOAT32` makes the second product in float32: most coefficients lie below float16's range.
    """
    numbers = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    within = numbers < num_entries
    classes = tl.load(entry_classes + numbers, mask=within, other=-1)
    there = classes >= 0
    columns = fetch(
        entries, numbers, there, row_stride, column_stride, largest, rows, D, BLOCK_D, NARROWS
    )
    gradient = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    if MINED:
        bits = tl.load(column_bits + numbers, mask=within, other=0)[:, None]
    if BOTH_ROLES:
        own_log_sum = tl.load(log_sums + numbers, mask=within, other=0.0)[:, None]
        own_weight = tl.load(weights + numbers, mask=within, other=0.0)[:, None]
        own_share = tl.load(shares + numbers, mask=within, other=0.0)[:, None]
        own_upstream = tl.load(upstreams + numbers, mask=within, other=0.0)[:, None]

    present = tl.load(num_present)
    num_blocks = (present + BLOCK_N - 1) // BLOCK_N
    split = tl.program_id(1)
    start = num_blocks * split // num_shares
    stop = num_blocks * (split + 1) // num_shares
    for block in range(start, stop):
        row_numbers = block * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = row_numbers < present
        anchors = fetch(rows, row_numbers, inside, D, 1, largest, rows, D, BLOCK_D, False)
        row_class = tl.load(row_classes + row_numbers, mask=inside, other=-1)
        log_sum = tl.load(log_sums + row_numbers, mask=inside, other=0.0)
        weight = tl.load(weights + row_numbers, mask=inside, other=0.0)
        share = tl.load(shares + row_numbers, mask=inside, other=0.0)
        upstream = tl.load(upstreams + row_numbers, mask=inside, other=0.0)
        if MINED:
            # As the passes before made them, to the bit: a threshold is one of them.
            logits = tl.trans(
                similarities(anchors, columns, scale, limit, BOUNDED, PRECISION, WIDEN)
            )
        else:
            logits = similarities(columns, anchors, scale, limit, BOUNDED, PRECISION, WIDEN)
        pair = there[:, None] & inside[None, :]
        same = classes[:, None] == row_class[None, :]
        positive = pair & same
        negative = pair & (same == 0)
        if IS_ANCHORS:
            positive = positive & (numbers[:, None] != row_numbers[None, :])
        hard = negative
        easy = positive
        if MINED:
            anchor_bits = tl.load(row_bits + row_numbers, mask=inside, other=0)[None, :]
            hard = negative & selected(
                logits,
                tl.load(negative_hardness + row_numbers, mask=inside, other=0.0)[None, :],
                tl.load(negative_key + row_numbers, mask=inside, other=0)[None, :],
                anchor_bits,
                bits,
                False,
            )
            easy = positive & selected(
                logits,
                tl.load(positive_hardness + row_numbers, mask=inside, other=0.0)[None, :],
                tl.load(positive_key + row_numbers, mask=inside, other=0)[None, :],
                anchor_bits,
                bits,
                True,
            )
        change = _derivative(
            logits,
            easy,
            hard,
            log_sum[None, :],
            weight[None, :],
            share[None, :],
            upstream[None, :],
            ALL,
        )
        if BOTH_ROLES:
            change += _derivative(
                logits,
                positive,
                negative,
                own_log_sum,
                own_weight,
                own_share,
                own_upstream,
                ALL,
            )
        if IN_FLOAT32:
            gradient = multiply(change, anchors.to(tl.float32), gradient, "tf32", WIDEN)
        else:
            gradient = multiply(change.to(anchors.dtype), anchors, gradient, PRECISION, WIDEN)

    components = tl.arange(0, BLOCK_D)
    places = (numbers.to(tl.int64) + split * num_entries)[:, None] * D + components[None, :]
    tl.store(
        gradients + places,
        gradient * inverse_temperature,
        mask=within[:, None] & (components < D)[None, :],
    )
