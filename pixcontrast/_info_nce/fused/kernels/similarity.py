"""What every kernel does to a tile: fetch vectors, multiply them, choose among the pairs."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fetch(
    vectors,
    numbers,
    there,
    row_stride,
    column_stride,
    largest,
    like,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NARROWS: tl.constexpr,
):
    """(n, BLOCK_D) vectors as operands of `like`'s dtype; zeros where they are not `there`.

    Vectors of a wider dtype saturate at `largest`: 0 · ∞ would be NaN.
    """
    components = tl.arange(0, BLOCK_D)
    # Four million entries of 512 components are more than 32 bits can number.
    starts = vectors + numbers.to(tl.int64) * row_stride
    places = starts[:, None] + components[None, :] * column_stride
    within = there[:, None]
    if BLOCK_D != D:
        within = within & (components < D)[None, :]
    fetched = tl.load(places, mask=within, other=0.0)
    if NARROWS:
        fetched = tl.minimum(tl.maximum(fetched.to(tl.float32), -largest), largest)
    return fetched.to(like.dtype.element_ty)


@triton.jit
def multiply(left, right, sums, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """What `sums` and left · right add up to, in float32."""
    if WIDEN:
        # The interpreter cannot multiply in 16 bits; products of 16-bit numbers are exact so.
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc=sums, input_precision=PRECISION)


@triton.jit
def similarities(
    left,
    right,
    scale,
    limit,
    BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(m, n) similarities of (m, D) with (n, D), times log2(e): what exp2 and log2 work with."""
    zeros = tl.zeros([left.shape[0], right.shape[0]], dtype=tl.float32)
    logits = multiply(left, tl.trans(right), zeros, PRECISION, WIDEN) * scale
    if not BOUNDED:
        logits = tl.minimum(tl.maximum(logits, -limit), limit)
    return logits


@triton.jit
def mix(numbers):
    """`pixcontrast._info_nce.random_keys._mix_`: 32 bits one to one."""
    numbers ^= (numbers >> 16) & 0xFFFF
    numbers *= 0x7FEB352D
    numbers ^= (numbers >> 15) & 0x1FFFF
    # 0x846CA68B as the signed number of the same bits.
    numbers *= -2073254261
    return numbers ^ ((numbers >> 16) & 0xFFFF)


@triton.jit
def selected(logits, hardness, key, row_bits, column_bits, POSITIVE: tl.constexpr):
    """Which pairs mining selects, by their anchor's thresholds; all shaped to broadcast."""
    kept = mix(row_bits ^ column_bits) <= key
    if POSITIVE:
        return kept & (logits <= hardness)
    return kept & (logits >= hardness)


@triton.jit
def softplus_and_sigmoid(margin):
    """log2(1 + 2^margin) and 1 / (1 + 2^−margin), for −∞ too, to the last digits of the former."""
    small = tl.exp2(-tl.abs(margin))
    # log(1 + e) loses e's digits to 1; the rounded sum divides out again what was lost.
    rounded = 1.0 + small
    lost = rounded == 1.0
    corrected = tl.log2(rounded) * (small / tl.where(lost, 1.0, rounded - 1.0))
    tail = tl.where(lost, small * 1.4426950408889634, corrected)
    sigmoid = tl.where(margin >= 0, 1.0, small) / rounded
    return tl.maximum(margin, 0.0) + tail, sigmoid
