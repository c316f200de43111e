"""Triton kernel that sums unit vectors by region, reading the map once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_REGIONS = 32
TILE_SIZE = 1 << 13
"""Components of a tile. A program holds two copies, and a multiprocessor runs two programs."""
MAX_SPLITS = 64
NUM_WARPS = 8
NUM_STAGES = 1
"""With more stages, fewer programs would fit on a multiprocessor. They hide each other's loads."""


def sum_regions(
    flat: Tensor, slots: Tensor, num_slots: int, smallest: float
) -> tuple[Tensor, Tensor]:
    """Launch the kernel, which computes `sums_in_chunks` in float32.

    An embedding without a component above `smallest` counts as zero.
    """
    num_images, dim, num_pixels = flat.shape
    usable = torch.empty(slots.shape, dtype=torch.bool, device=flat.device)
    block_dim, block_pixels = tile_shape(dim)
    num_blocks = triton.cdiv(num_slots, BLOCK_REGIONS)
    num_splits = min(MAX_SPLITS, triton.cdiv(num_pixels, 4 * block_pixels))
    sums = flat.new_empty(num_splits, num_images, num_slots, dim, dtype=torch.float32)
    with torch.cuda.device_of(flat):
        region_kernel[(num_blocks, num_splits, num_images)](
            flat,
            slots.contiguous(),
            usable,
            sums,
            num_pixels,
            num_slots,
            num_splits,
            *flat.stride(),
            smallest,
            D=dim,
            BLOCK_D=block_dim,
            BLOCK_P=block_pixels,
            BLOCK_R=BLOCK_REGIONS,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
    return sums.sum(dim=0), usable


def tile_shape(dim: int) -> tuple[int, int]:
    """Return the number of components and pixels of a tile."""
    block_dim = max(16, int(triton.next_power_of_2(dim)))
    return block_dim, min(64, max(16, TILE_SIZE // block_dim))


@triton.jit(do_not_specialize=["num_pixels", "num_slots", "num_splits"])
def region_kernel(
    maps,
    slots,
    usable,
    sums,
    num_pixels,
    num_slots,
    num_splits,
    image_stride,
    component_stride,
    pixel_stride,
    smallest,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Program (r, k, b) sums region block r of image b over split k of the pixels.

    The sum of unit vectors is a product with the one-hot map of the labels. Each component is split
    into two parts, because a TF32 operand has only 11 bits.
    """
    image = tl.program_id(2)
    split = tl.program_id(1)
    regions = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    components = tl.arange(0, BLOCK_D)
    in_vector = components < D
    columns = maps + image.to(tl.int64) * image_stride + components.to(tl.int64) * component_stride
    first_pixel = image.to(tl.int64) * num_pixels
    num_blocks = (num_pixels + BLOCK_P - 1) // BLOCK_P
    total = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for block in range(num_blocks * split // num_splits, num_blocks * (split + 1) // num_splits):
        pixels = block * BLOCK_P + tl.arange(0, BLOCK_P)
        inside = pixels < num_pixels
        pointers = columns[:, None] + pixels.to(tl.int64)[None, :] * pixel_stride
        vectors = tl.load(pointers, mask=in_vector[:, None] & inside[None, :], other=0.0)
        vectors = vectors.to(tl.float32)
        finite = tl.abs(vectors) < float("inf")
        vectors = tl.where(finite, vectors, 0.0)
        # Once the largest component is 1, squares and their sum do not overflow or underflow.
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
        # `upper` is `unit` without its last 13 bits, and `unit - upper` is the remainder.
        upper = (unit.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        total = tl.dot(members, tl.trans(upper), acc=total, input_precision="tf32")
        total = tl.dot(members, tl.trans(unit - upper), acc=total, input_precision="tf32")
    rows = (split * tl.num_programs(2) + image).to(tl.int64) * num_slots + regions
    tl.store(
        sums + rows[:, None] * D + components[None, :],
        total,
        mask=(regions < num_slots)[:, None] & in_vector[None, :],
    )
