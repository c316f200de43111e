"""The gradient of contrast entries, and of the anchors against themselves in both of their roles.

Each program takes a block of entries and a split of the anchors, whose Z, w and 1/|P| are known. If
the anchors are the entries, the coefficients of both roles, G + Gᵀ, are computed from one product:
s_ij equals s_ji up to rounding. Mining needs s_ij to the bit and computes one role at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit
def _coefficients(
    logits, positive, negative, lse, weight, inv_num_positives, upstream, ALL: tl.constexpr
):
    """Return ∂L/∂s times the upstream gradient, as `derivative.py` defines it."""
    # No likelihood of a counted entry exceeds 1. That of a masked one might overflow.
    likelihood = tl.exp2(tl.minimum(logits - lse, 0.0))
    if ALL:
        negative_grad = tl.where(positive | negative, likelihood * weight, 0.0)
        positive_grad = tl.where(positive, inv_num_positives, 0.0)
    else:
        _, sigmoid = tile.softplus_and_sigmoid(lse - logits)
        negative_grad = tl.where(negative, likelihood * weight, 0.0)
        positive_grad = tl.where(positive, sigmoid * inv_num_positives, 0.0)
    return (negative_grad - positive_grad) * upstream


@triton.jit(do_not_specialize=["num_entries"])
def entries_gradient_kernel(
    anchors,
    anchor_classes,
    num_valid,
    lse,
    weight,
    inv_num_positives,
    upstream,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    negative_logit,
    negative_key,
    positive_logit,
    positive_key,
    anchor_bits,
    entry_bits,
    gradients,
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
    largest,
    PRECISION: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
):
    """Program (j, k): the gradient of entry block j through the k-th split of the anchors.

    `IN_FLOAT32` computes the second product in float32, because most coefficients are below
    float16's range.
    """
    ids, valid, entry_class = tile.load_classes(
        entry_classes, tl.program_id(0), num_entries, BLOCK_M
    )
    inside = ids < num_entries
    entry_tile = tile.load_entries(
        entries, ids, valid, row_stride, column_stride, anchors, D, BLOCK_D, largest
    )
    gradient = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    if MINED:
        other_bits = tl.load(entry_bits + ids, mask=inside, other=0)[:, None]
    if BOTH_ROLES:
        own_lse = tl.load(lse + ids, mask=inside, other=0.0)[:, None]
        own_weight = tl.load(weight + ids, mask=inside, other=0.0)[:, None]
        own_inverse = tl.load(inv_num_positives + ids, mask=inside, other=0.0)[:, None]
        own_upstream = tl.load(upstream + ids, mask=inside, other=0.0)[:, None]

    valid_anchors = tl.load(num_valid)
    split = tl.program_id(1)
    num_blocks = (valid_anchors + BLOCK_N - 1) // BLOCK_N
    start, stop = blocks.split_range(num_blocks, split, tl.num_programs(1))
    for block in range(start, stop):
        anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
            anchors, anchor_classes, block * BLOCK_N, valid_anchors, BLOCK_N, D, BLOCK_D
        )
        z = tl.load(lse + anchor_ids, mask=is_anchor, other=0.0)[None, :]
        w = tl.load(weight + anchor_ids, mask=is_anchor, other=0.0)[None, :]
        inverse = tl.load(inv_num_positives + anchor_ids, mask=is_anchor, other=0.0)[None, :]
        grad = tl.load(upstream + anchor_ids, mask=is_anchor, other=0.0)[None, :]
        if MINED:
            # In the order of the earlier passes, which gives the same bits: a threshold is one of
            # these similarities.
            logits = tl.trans(
                tile.similarities(anchor_tile, entry_tile, scale, limit, BOUNDED, PRECISION)
            )
        else:
            logits = tile.similarities(entry_tile, anchor_tile, scale, limit, BOUNDED, PRECISION)
        pair = valid[:, None] & is_anchor[None, :]
        positive, negative, _ = tile.masks(
            pair, entry_class, anchor_class, ids, anchor_ids, IS_ANCHORS
        )
        if MINED:
            bits = tl.load(anchor_bits + anchor_ids, mask=is_anchor, other=0)[None, :]
            threshold = tl.load(negative_logit + anchor_ids, mask=is_anchor, other=0.0)[None, :]
            key = tl.load(negative_key + anchor_ids, mask=is_anchor, other=0)[None, :]
            negative &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
            threshold = tl.load(positive_logit + anchor_ids, mask=is_anchor, other=0.0)[None, :]
            key = tl.load(positive_key + anchor_ids, mask=is_anchor, other=0)[None, :]
            positive &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=True)
        coefficients = _coefficients(logits, positive, negative, z, w, inverse, grad, ALL)
        if BOTH_ROLES:
            coefficients += _coefficients(
                logits, positive, negative, own_lse, own_weight, own_inverse, own_upstream, ALL
            )
        if IN_FLOAT32:
            anchor_tile = anchor_tile.to(tl.float32)
        gradient = tile.multiply(coefficients, anchor_tile, gradient, PRECISION)

    slots = ids.to(tl.int64) + split * num_entries
    tile.store_vectors(gradients, slots, inside, gradient * inverse_temperature, D, BLOCK_D)
