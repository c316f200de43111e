"""The kernel that sums regions: it reads the map once for unit length, membership and product."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_pixels", "num_slots", "num_shares"])
def region_kernel(
    maps,
    slots,
    usable,
    sums,
    num_pixels,
    num_slots,
    num_shares,
    image_stride,
    component_stride,
    pixel_stride,
    smallest,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program (r, k, b): region block r of image b, over the k-th share of its pixels.

    The sum of unit vectors is a product with the labels' one-hot map, made in two parts of each
    number, so that a matrix unit's 11 bits of either are enough.
    """
    image = tl.program_id(2)
    share = tl.program_id(1)
    regions = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    components = tl.arange(0, BLOCK_D)
    in_vector = components < D
    columns = maps + image.to(tl.int64) * image_stride + components.to(tl.int64) * component_stride
    first_pixel = image.to(tl.int64) * num_pixels
    num_blocks = (num_pixels + BLOCK_P - 1) // BLOCK_P
    made = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(num_blocks * share // num_shares, num_blocks * (share + 1) // num_shares):
        pixels = block * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = pixels < num_pixels
        places = columns[:, None] + pixels.to(tl.int64)[None, :] * pixel_stride
        vectors = tl.load(places, mask=in_vector[:, None] & inside[None, :], other=0.0)
        vectors = vectors.to(tl.float32)
        finite = tl.abs(vectors) < float("inf")
        vectors = tl.where(finite, vectors, 0.0)
        # Neither squares nor their sum overflow or vanish once the largest component is 1.
        largest = tl.max(tl.abs(vectors), axis=0)
        is_usable = (tl.min(finite.to(tl.int32), axis=0) > 0) & (largest > smallest)
        vectors = tl.where(is_usable[None, :], vectors, 0.0)
        vectors = vectors / tl.where(is_usable, largest, 1.0)[None, :]
        factor = tl.rsqrt(tl.maximum(tl.sum(vectors * vectors, axis=0), 1.0))
        if tl.program_id(0) == 0:
            tl.store(usable + first_pixel + pixels, is_usable, mask=inside)
        unit = vectors * factor[None, :]
        slot = tl.load(slots + first_pixel + pixels, mask=inside, other=-1)
        members = (regions[:, None] == slot[None, :]).to(tl.float32)
        # All but the last 13 bits, and those.
        upper = (unit.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        made = tl.dot(members, tl.trans(upper), acc=made, input_precision="tf32")
        made = tl.dot(members, tl.trans(unit - upper), acc=made, input_precision="tf32")
    rows = (share * tl.num_programs(2) + image).to(tl.int64) * num_slots + regions
    tl.store(
        sums + rows[:, None] * D + components[None, :],
        made,
        mask=(regions < num_slots)[:, None] & in_vector[None, :],
    )
