"""Operations on one tile that all kernels share: load, multiply, mask, select."""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._triton import interpreted

# Triton's interpreter cannot multiply in 16 bits.
WIDEN = tl.constexpr(interpreted())


@triton.jit
def load_vectors(source, ids, valid, like, settings):
    """Load `Vectors` by their ids as an (n, BLOCK_D) operand of the dtype of the vectors `like`.

    Vectors that are not `valid` (None: all are) are replaced by zeros: ignored entries may contain
    NaN, and 0 · NaN is NaN.
    """
    components = tl.arange(0, settings.BLOCK_D)
    # Use 64-bit offsets: four million entries of 512 components exceed 32 bits.
    starts = source.vectors + ids.to(tl.int64) * source.row_stride
    pointers = starts[:, None] + components[None, :] * source.column_stride
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
        loaded = tl.minimum(tl.maximum(loaded.to(tl.float32), -source.largest), source.largest)
    return loaded.to(like.vectors.dtype.element_ty)


@triton.jit
def load_classes(entries, block, num_entries, BLOCK: tl.constexpr):
    """Return ids, mask of the valid entries, and classes of a block of entries."""
    ids = block * BLOCK + tl.arange(0, BLOCK)
    entry_class = tl.load(entries.classes + ids, mask=ids < num_entries, other=-1)
    return ids, entry_class >= 0, entry_class


@triton.jit
def load_anchors(anchors, first, num_valid, BLOCK: tl.constexpr, settings):
    """Return ids, mask of the valid anchors, vectors and classes of a block of sorted anchors."""
    ids = first + tl.arange(0, BLOCK)
    valid = ids < num_valid
    vectors = load_vectors(anchors, ids, valid, anchors, settings)
    return ids, valid, vectors, load(anchors.classes, ids, valid, -1)


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
        logits = tl.minimum(tl.maximum(logits, -settings.limit), settings.limit)
    return logits


@triton.jit
def masks(pair, row_class, column_class, row_ids, column_ids, IS_ANCHORS: tl.constexpr):
    """Return which of the valid pairs `pair` are positives, negatives, and either of both."""
    same = row_class[:, None] == column_class[None, :]
    positive = pair & same
    negative = pair & (same == 0)
    if IS_ANCHORS:
        # Apply it twice: registers spill in `entries_gradient_kernel` if `positive` uses the new
        # `pair`.
        is_other = row_ids[:, None] != column_ids[None, :]
        positive = positive & is_other
        pair = pair & is_other
    return positive, negative, pair


@triton.jit
def load_pairs(rows, entries, block, num_entries, anchors, settings):
    """Return ids and vectors of a block of entries, and its similarities and `masks` with anchors.

    `rows` are the anchors as `load_anchors` returns them.
    """
    anchor_ids, _, anchor_tile, anchor_class = rows
    ids, valid, entry_class = load_classes(entries, block, num_entries, settings.BLOCK_N)
    entry_tile = load_vectors(entries, ids, valid, anchors, settings)
    logits = similarities(anchor_tile, entry_tile, settings)
    positive, negative, pair = masks(
        valid[None, :], anchor_class, entry_class, anchor_ids, ids, settings.IS_ANCHORS
    )
    return ids, entry_tile, logits, positive, negative, pair


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
    """Return which pairs meet the thresholds of their anchors. Shapes broadcast."""
    selected = mix_bits(anchor_bits ^ entry_bits) <= key
    if POSITIVE:
        return selected & (logits <= threshold)
    return selected & (logits >= threshold)


@triton.jit
def softplus_and_sigmoid(margin):
    """Compute log2(1 + 2^margin) and 1 / (1 + 2^−margin) to rounding error, also at ±∞."""
    small = tl.exp2(-tl.abs(margin))
    # log(1 + e) loses the digits of e that are below the last digit of 1. The quotient of e and
    # the rounded sum minus 1 restores them.
    rounded = 1.0 + small
    vanished = rounded == 1.0
    corrected = tl.log2(rounded) * (small / tl.where(vanished, 1.0, rounded - 1.0))
    tail = tl.where(vanished, small * 1.4426950408889634, corrected)
    sigmoid = tl.where(margin >= 0, 1.0, small) / rounded
    return tl.maximum(margin, 0.0) + tail, sigmoid
