"""Operations on one tile that all kernels share: load, multiply, mask, select."""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._triton import interpreted

# Triton's interpreter cannot multiply in 16 bits.
WIDEN = tl.constexpr(interpreted())


@triton.jit
def load_vectors(source, block, valid, like, BLOCK: tl.constexpr, settings):
    """Load a block of `Vectors` as a (BLOCK, BLOCK_D) operand of the dtype of the vectors `like`.

    Vectors that are not `valid` (None: all are) are replaced by zeros: ignored entries may contain
    NaN, and 0 · NaN is NaN.
    """
    components = tl.arange(0, settings.BLOCK_D)
    # Use 64-bit offsets: four million entries of 512 components exceed 32 bits. The start of the
    # block plus offsets that the compiler knows takes the fewest instructions and registers.
    start = source.vectors + tl.cast(block, tl.int64) * (BLOCK * settings.D)
    pointers = start + (tl.arange(0, BLOCK)[:, None] * settings.D + components[None, :])
    if valid is not None:
        inside = valid[:, None]
        if settings.BLOCK_D != settings.D:
            inside = inside & (components < settings.D)[None, :]
        loaded = tl.load(pointers, mask=inside, other=0.0)
    elif settings.BLOCK_D != settings.D:
        loaded = tl.load(pointers, mask=(components < settings.D)[None, :], other=0.0)
    else:
        loaded = tl.load(pointers)
    if source.largest is not None:
        loaded = clamp(loaded.to(tl.float32), source.largest)
    return loaded.to(like.vectors.dtype.element_ty)


@triton.jit
def clamp(numbers, limit):
    """Return numbers limited to ±`limit`. NaN stays, so that it reaches the loss."""
    limited = tl.maximum(numbers, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(limited, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_classes(entries, block, num_entries, BLOCK: tl.constexpr):
    """Return ids, mask of the valid entries, and classes of a block of entries."""
    ids = block * BLOCK + tl.arange(0, BLOCK)
    entry_class = tl.load(entries.classes + ids, mask=ids < num_entries, other=-1)
    return ids, entry_class >= 0, entry_class


@triton.jit
def load_anchors(anchors, block, num_valid, BLOCK: tl.constexpr, settings):
    """Return ids, mask of the valid anchors, vectors and classes of a block of anchors.

    Sorted anchors are valid if their id is below `num_valid`, others if they have a class.
    """
    if anchors.num_valid is None:
        ids, valid, anchor_class = load_classes(anchors, block, num_valid, BLOCK)
    else:
        ids = block * BLOCK + tl.arange(0, BLOCK)
        valid = ids < num_valid
        anchor_class = load(anchors.classes, ids, valid, -1)
    return ids, valid, load_vectors(anchors, block, valid, anchors, BLOCK, settings), anchor_class


@triton.jit
def load(numbers, ids, inside, other=0):
    """Load a number for each id, and `other` for those that are not inside."""
    return tl.load(numbers + ids, mask=inside, other=other)


@triton.jit
def store_vectors(vectors, ids, inside, values, settings):
    """Store (n, BLOCK_D) values as contiguous vectors of D components at 64-bit ids."""
    components = tl.arange(0, settings.BLOCK_D)
    pointers = vectors + ids[:, None] * settings.D + components[None, :]
    tl.store(pointers, values, mask=inside[:, None] & (components < settings.D)[None, :])


@triton.jit
def multiply(left, right, accumulator, PRECISION: tl.constexpr):
    """Return accumulator + left · right in float32; operands have the dtype of `right`."""
    left = left.to(right.dtype)
    if WIDEN:
        # Products of 16-bit numbers are exact in float32.
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc=accumulator, input_precision=PRECISION)


@triton.jit
def similarities(left, right, settings):
    """Compute (m, n) similarities of (m, D) and (n, D) to the base 2: <a, k> / τ · log2(e)."""
    zeros = tl.zeros([left.shape[0], right.shape[0]], dtype=tl.float32)
    logits = multiply(left, tl.trans(right), zeros, settings.PRECISION) * settings.scale
    if not settings.BOUNDED:
        logits = clamp(logits, settings.limit)
    return logits


@triton.jit
def load_pairs(rows, entries, block, num_entries, anchors, settings):
    """Return ids and vectors of a block of entries, and its similarities with a block of anchors.

    The masks of the positives, the negatives, and both follow. `rows` are the anchors as
    `load_anchors` returns them.
    """
    anchor_ids, _, anchor_tile, anchor_class = rows
    ids, valid, entry_class = load_classes(entries, block, num_entries, settings.BLOCK_N)
    entry_tile = load_vectors(entries, block, valid, anchors, settings.BLOCK_N, settings)
    logits = similarities(anchor_tile, entry_tile, settings)
    pair = valid[None, :]
    same = anchor_class[:, None] == entry_class[None, :]
    negative = pair & (same == 0)
    if settings.IS_ANCHORS:
        pair = pair & (anchor_ids[:, None] != ids[None, :])
    return ids, entry_tile, logits, pair & same, negative, pair


@triton.jit
def mix_bits(numbers):
    """Mix 32 bits, one to one: the same function as `thresholds._mix_`."""
    numbers ^= (numbers >> 16) & 0xFFFF
    numbers *= 0x7FEB352D
    numbers ^= (numbers >> 15) & 0x1FFFF
    # 0x846CA68B as a signed integer of the same bits.
    numbers *= -2073254261
    return numbers ^ ((numbers >> 16) & 0xFFFF)


@triton.jit
def is_selected(logits, threshold, key, anchor_bits, entry_bits, POSITIVE: tl.constexpr):
    """Return which pairs meet their anchors' thresholds; NaN is hard enough. Shapes broadcast."""
    selected = mix_bits(anchor_bits ^ entry_bits) <= key
    if POSITIVE:
        return selected & ((logits > threshold) == 0)
    return selected & ((logits < threshold) == 0)


@triton.jit
def reciprocal(numbers):
    """Return 1/x for numbers of at least 1, with a relative error of 3e-7; 0 for ∞.

    A division would take three times the instructions, to serve the whole range of float32.
    """
    root = tl.rsqrt(numbers)
    return root * root


@triton.jit
def softplus_and_sigmoid(margin):
    """Compute log2(1 + 2^margin) and 1 / (1 + 2^−margin) to rounding error, also at ±∞."""
    small = tl.exp2(-tl.abs(margin))
    # With z = e / (2 + e), log(1 + e) is 2·artanh(z): an odd polynomial, which keeps the digits of
    # e that are below the last digit of 1. Its error is 2e-8 for z up to 1/3.
    product = (1.0 + small) * (2.0 + small)
    inverse = reciprocal(product)
    inverse = inverse * (2.0 - product * inverse)
    z = small * (inverse * (1.0 + small))
    square = z * z
    series = 0.40647438168525696 * square + 0.4033980071544647
    series = series * square + 0.5774365663528442
    series = series * square + 0.9617916345596313
    series = series * square + 2.885390043258667
    sigmoid = tl.where(margin >= 0, 1.0, small) * (inverse * (2.0 + small))
    return tl.maximum(margin, 0.0) + z * series, sigmoid
