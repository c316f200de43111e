"""The gradient of contrast entries, and of the anchors against themselves in both of their roles.

Each program computes a block of entries from a split of the anchors, whose Z, w and 1/|P| are
known. If the entries are the anchors, the coefficients of both roles, G + Gᵀ, are computed from one
product, because s_ij equals s_ji up to rounding. Mining needs bit-identical s_ij, so each role is
computed separately.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit
def _terms(logits, known, ALL: tl.constexpr):
    """Return w·exp(s − Z) and the part of a positive in −∂L/∂s, times the upstream gradient.

    `derivative.py` has the derivative. Values of pairs that are neither may be infinite or NaN.
    """
    lse, weight, inv_num_positives = known
    likelihood = tl.exp2(logits - lse)
    if ALL:
        positive_grad = inv_num_positives
    else:
        positive_grad = inv_num_positives * tile.reciprocal(1.0 + likelihood)
    # The likelihood of an entry of Z is at most 1 but for rounding errors of large similarities.
    likelihood = tl.minimum(likelihood, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return likelihood * weight, positive_grad


@triton.jit
def _load_known(statistics, upstream, stride, ids, inside, AXIS: tl.constexpr):
    """Load Z, w and 1/|P| of anchors with a new dimension, the latter two times the upstream."""
    scale = tile.load(upstream, ids * stride, inside)
    lse = tile.load(statistics.lse, ids, inside)
    weight = tile.load(statistics.weight, ids, inside) * scale
    inverse = tile.load(statistics.inv_num_positives, ids, inside) * scale
    return tl.expand_dims(lse, AXIS), tl.expand_dims(weight, AXIS), tl.expand_dims(inverse, AXIS)


@triton.jit(do_not_specialize=["num_entries", "upstream_stride"])
def entries_gradient_kernel(
    anchors,
    entries,
    num_entries,
    thresholds,
    statistics,
    upstream,
    upstream_stride,
    gradients,
    settings,
    BOTH_ROLES: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
):
    """Program (j, k): the gradient of entry block j through the k-th split of the anchors.

    `IN_FLOAT32` computes the second product in float32, because most coefficients are below the
    range of float16.
    """
    entry_block = tl.program_id(0)
    ids, valid, entry_class = tile.load_classes(entries, entry_block, num_entries, settings.BLOCK_M)
    inside = ids < num_entries
    entry_tile = tile.load_vectors(entries, entry_block, valid, anchors, settings.BLOCK_M, settings)
    gradient = tl.zeros([settings.BLOCK_M, settings.BLOCK_D], dtype=tl.float32)
    if thresholds is not None:
        other_bits = tile.load(entries.key_bits, ids, inside)[:, None]
    if BOTH_ROLES:
        own = _load_known(statistics, upstream, upstream_stride, ids, valid, 1)

    valid_anchors = num_entries
    if anchors.num_valid is not None:
        valid_anchors = tl.load(anchors.num_valid)
    split = tl.program_id(1)
    num_blocks = (valid_anchors + settings.BLOCK_N - 1) // settings.BLOCK_N
    start, stop = blocks.split_range(num_blocks, split, tl.num_programs(1))
    for block in range(start, stop):
        anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
            anchors, block, valid_anchors, settings.BLOCK_N, settings
        )
        known = _load_known(statistics, upstream, upstream_stride, anchor_ids, is_anchor, 0)
        if thresholds is not None:
            # Multiply in the order of the earlier passes, which gives the same bits: a threshold is
            # equal to one of these similarities.
            logits = tl.trans(tile.similarities(anchor_tile, entry_tile, settings))
        else:
            logits = tile.similarities(entry_tile, anchor_tile, settings)
        # Ignored anchors have a w and a 1/|P| of 0, and ignored entries are left out at the end.
        same = entry_class[:, None] == anchor_class[None, :]
        negative = same == 0
        positive = same
        if settings.IS_ANCHORS:
            positive = same & (ids[:, None] != anchor_ids[None, :])
        if thresholds is not None:
            bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[None, :]
            threshold = tile.load(thresholds.negative_logit, anchor_ids, is_anchor)[None, :]
            key = tile.load(thresholds.negative_key, anchor_ids, is_anchor)[None, :]
            negative &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
            threshold = tile.load(thresholds.positive_logit, anchor_ids, is_anchor)[None, :]
            key = tile.load(thresholds.positive_key, anchor_ids, is_anchor)[None, :]
            positive &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=True)
        negative_grad, positive_grad = _terms(logits, known, settings.ALL)
        if BOTH_ROLES:
            own_negative_grad, own_positive_grad = _terms(logits, own, settings.ALL)
            negative_grad += own_negative_grad
            positive_grad += own_positive_grad
        if settings.ALL:
            coefficients = tl.where(positive | negative, negative_grad, 0.0)
            coefficients -= tl.where(positive, positive_grad, 0.0)
        else:
            coefficients = tl.where(positive, -positive_grad, 0.0)
            coefficients = tl.where(negative, negative_grad, coefficients)
        if IN_FLOAT32:
            anchor_tile = anchor_tile.to(tl.float32)
        gradient = tile.multiply(coefficients, anchor_tile, gradient, settings.PRECISION)

    slots = ids.to(tl.int64) + split * num_entries
    gradient = tl.where(valid[:, None], gradient * settings.inverse_temperature, 0.0)
    tile.store_vectors(gradients, slots, inside, gradient, settings)
