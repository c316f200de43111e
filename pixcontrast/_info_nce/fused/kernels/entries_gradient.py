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
def _coefficients(logits, positive, negative, known, ALL: tl.constexpr):
    """Return ∂L/∂s times the upstream gradient, as `derivative.py` defines it."""
    lse, weight, inv_num_positives, upstream = known
    # The likelihood of an entry that is not masked is at most 1. Others might overflow.
    likelihood = tl.exp2(tl.minimum(logits - lse, 0.0))
    if ALL:
        negative_grad = tl.where(positive | negative, likelihood * weight, 0.0)
        positive_grad = tl.where(positive, inv_num_positives, 0.0)
    else:
        _, sigmoid = tile.softplus_and_sigmoid(lse - logits)
        negative_grad = tl.where(negative, likelihood * weight, 0.0)
        positive_grad = tl.where(positive, sigmoid * inv_num_positives, 0.0)
    return (negative_grad - positive_grad) * upstream


@triton.jit
def _load_known(statistics, upstream, ids, inside, AXIS: tl.constexpr):
    """Load Z, w, 1/|P| and the upstream gradient of anchors, with a new dimension."""
    lse = tl.expand_dims(tile.load(statistics.lse, ids, inside), AXIS)
    weight = tl.expand_dims(tile.load(statistics.weight, ids, inside), AXIS)
    inverse = tl.expand_dims(tile.load(statistics.inv_num_positives, ids, inside), AXIS)
    return lse, weight, inverse, tl.expand_dims(tile.load(upstream, ids, inside), AXIS)


@triton.jit(do_not_specialize=["num_entries"])
def entries_gradient_kernel(
    anchors,
    entries,
    num_entries,
    thresholds,
    statistics,
    upstream,
    gradients,
    settings,
    BOTH_ROLES: tl.constexpr,
    IN_FLOAT32: tl.constexpr,
):
    """Program (j, k): the gradient of entry block j through the k-th split of the anchors.

    `IN_FLOAT32` computes the second product in float32, because most coefficients are below the
    range of float16.
    """
    ids, valid, entry_class = tile.load_classes(
        entries, tl.program_id(0), num_entries, settings.BLOCK_M
    )
    inside = ids < num_entries
    entry_tile = tile.load_vectors(entries, ids, valid, anchors, settings)
    gradient = tl.zeros([settings.BLOCK_M, settings.BLOCK_D], dtype=tl.float32)
    if thresholds is not None:
        other_bits = tile.load(entries.key_bits, ids, inside)[:, None]
    if BOTH_ROLES:
        own = _load_known(statistics, upstream, ids, inside, 1)

    valid_anchors = tl.load(anchors.num_valid)
    split = tl.program_id(1)
    num_blocks = (valid_anchors + settings.BLOCK_N - 1) // settings.BLOCK_N
    start, stop = blocks.split_range(num_blocks, split, tl.num_programs(1))
    for block in range(start, stop):
        anchor_ids, is_anchor, anchor_tile, anchor_class = tile.load_anchors(
            anchors, block * settings.BLOCK_N, valid_anchors, settings.BLOCK_N, settings
        )
        known = _load_known(statistics, upstream, anchor_ids, is_anchor, 0)
        if thresholds is not None:
            # Multiply in the order of the earlier passes, which gives the same bits: a threshold is
            # equal to one of these similarities.
            logits = tl.trans(tile.similarities(anchor_tile, entry_tile, settings))
        else:
            logits = tile.similarities(entry_tile, anchor_tile, settings)
        pair = valid[:, None] & is_anchor[None, :]
        positive, negative, _ = tile.masks(
            pair, entry_class, anchor_class, ids, anchor_ids, settings.IS_ANCHORS
        )
        if thresholds is not None:
            bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[None, :]
            threshold = tile.load(thresholds.negative_logit, anchor_ids, is_anchor)[None, :]
            key = tile.load(thresholds.negative_key, anchor_ids, is_anchor)[None, :]
            negative &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
            threshold = tile.load(thresholds.positive_logit, anchor_ids, is_anchor)[None, :]
            key = tile.load(thresholds.positive_key, anchor_ids, is_anchor)[None, :]
            positive &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=True)
        coefficients = _coefficients(logits, positive, negative, known, settings.ALL)
        if BOTH_ROLES:
            coefficients += _coefficients(logits, positive, negative, own, settings.ALL)
        if IN_FLOAT32:
            anchor_tile = anchor_tile.to(tl.float32)
        gradient = tile.multiply(coefficients, anchor_tile, gradient, settings.PRECISION)

    slots = ids.to(tl.int64) + split * num_entries
    tile.store_vectors(gradients, slots, inside, gradient * settings.inverse_temperature, settings)
