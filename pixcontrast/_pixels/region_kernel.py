"""Triton kernels that compute regions, the unit-length means of unit vectors, in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._launch import launch_on
from pixcontrast._pixels.row_kernels import padded
from pixcontrast._triton import ceil_div, next_power_of_2

BLOCK_REGIONS = 32
TILE_SIZE = 1 << 13
"""Components of a tile. A program holds two copies, and a multiprocessor runs two programs."""
MAX_SPLITS = 64
NUM_WARPS = 8
NUM_STAGES = 1
"""With more stages, fewer programs would fit on a multiprocessor. They hide each other's loads."""
MERGED_ROWS = 2
"""Regions of a program that merges partial sums."""


def merge_regions(
    flat: Tensor, slots: Tensor, num_slots: int, smallest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the fields of `regions.Regions` for a map (B, D, P) and its slots (B, P)."""
    sums, counts, usable = sum_regions(flat, slots, num_slots, smallest)
    num_splits, *shape, dim = sums.shape
    means = sums.new_empty(*shape, dim)
    present = usable.new_empty(shape)
    if present.numel() > 0:
        launch_on(
            flat,
            merge_kernel,
            (ceil_div(present.numel(), MERGED_ROWS),),
            *(sums, counts, means, present, num_splits, present.numel(), dim, smallest),
            BLOCK_D=padded(dim),
            ROWS=MERGED_ROWS,
        )
    return means, present, usable


def sum_regions(
    flat: Tensor, slots: Tensor, num_slots: int, smallest: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute partial results of `regions.sums_in_chunks` over S splits of the pixels.

    An embedding without a component above `smallest` counts as zero. Return sums of unit vectors
    (S, B, R, D), the numbers of these vectors (S, B, R), and which pixels are usable (B, P). Sums
    of no vector may be unwritten.
    """
    num_images, dim, num_pixels = flat.shape
    usable = torch.empty(slots.shape, dtype=torch.bool, device=flat.device)
    block_dim, block_pixels = tile_shape(dim)
    num_splits = min(MAX_SPLITS, ceil_div(num_pixels, 4 * block_pixels))
    sums = flat.new_empty(num_splits, num_images, num_slots, dim, dtype=torch.float32)
    counts = torch.zeros(sums.shape[:3], dtype=torch.int32, device=flat.device)
    launch_on(
        flat,
        region_kernel,
        (num_splits, num_images),
        flat,
        slots.contiguous(),
        usable,
        sums,
        counts,
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
    return sums, counts, usable


def tile_shape(dim: int) -> tuple[int, int]:
    """Return the number of components and pixels of a tile."""
    block_dim = max(16, next_power_of_2(dim))
    return block_dim, min(64, max(16, TILE_SIZE // block_dim))


@triton.jit(do_not_specialize=["num_pixels", "num_slots", "num_splits"])
def region_kernel(
    maps,
    slots,
    usable,
    sums,
    counts,
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
    """Program (k, b) sums the regions of image b over split k of the pixels.

    The sum of unit vectors is a product with the one-hot map of the labels. Each component is split
    into two parts, because a TF32 operand has only 11 bits. Only regions with a pixel in the split
    are written, BLOCK_R at a time: neighbours mostly have the same label, so that the pixels are
    read once.
    """
    split = tl.program_id(0)
    image = tl.program_id(1)
    components = tl.arange(0, BLOCK_D)
    in_vector = components < D
    columns = maps + image.to(tl.int64) * image_stride + components.to(tl.int64) * component_stride
    first_pixel = image.to(tl.int64) * num_pixels
    first_row = (split * tl.num_programs(1) + image).to(tl.int64) * num_slots
    num_blocks = (num_pixels + BLOCK_P - 1) // BLOCK_P
    start = num_blocks * split // num_splits
    stop = num_blocks * (split + 1) // num_splits
    num_written = num_slots * 0
    num_present = num_slots * 0 + 1
    while num_written < num_present:
        regions, num_present = _present_regions(
            slots + first_pixel, start * BLOCK_P, tl.minimum(stop * BLOCK_P, num_pixels),
            num_slots, num_written, BLOCK_R,
        )  # fmt: skip
        total = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
        count = tl.zeros([BLOCK_R], dtype=tl.int32)
        for block in range(start, stop):
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
            tl.store(usable + first_pixel + pixels, is_usable, mask=inside)
            unit = vectors * factor[None, :]
            slot = tl.load(slots + first_pixel + pixels, mask=inside, other=-1)
            is_member = (regions[:, None] == slot[None, :]) & is_usable[None, :]
            count += tl.sum(is_member.to(tl.int32), axis=1)
            members = is_member.to(tl.float32)
            # `upper` is `unit` without its last 13 bits, and `unit - upper` is the remainder.
            upper = (unit.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            total = tl.dot(members, tl.trans(upper), acc=total, input_precision="tf32")
            total = tl.dot(members, tl.trans(unit - upper), acc=total, input_precision="tf32")
        rows = first_row + regions
        tl.store(counts + rows, count, mask=regions >= 0)
        tl.store(
            sums + rows[:, None] * D + components[None, :],
            total,
            mask=(regions >= 0)[:, None] & in_vector[None, :],
        )
        num_written += BLOCK_R


@triton.jit
def _present_regions(slots, first, stop, num_slots, skipped, BLOCK_R: tl.constexpr):
    """Return BLOCK_R of the regions that have a pixel from `first` to `stop`, and their number.

    The regions ascend; the first `skipped` of them are left out, and where there are no more, the
    region is −2, which no pixel has.
    """
    index = tl.arange(0, BLOCK_R)
    regions = index * 0 - 2
    num_present = num_slots * 0
    for region in range(0, num_slots, BLOCK_R):
        present = index * 0
        for pixel in range(first, stop, 4 * BLOCK_R):
            pixels = pixel + tl.arange(0, 4 * BLOCK_R)
            slot = tl.load(slots + pixels, mask=pixels < stop, other=-1)
            found = (region + index)[:, None] == slot[None, :]
            present = tl.maximum(present, tl.max(found.to(tl.int32), axis=1))
        position = num_present + tl.cumsum(present, 0) - 1 - skipped
        chosen = (position[None, :] == index[:, None]) & (present > 0)[None, :]
        regions = tl.maximum(
            regions, tl.max(tl.where(chosen, (region + index)[None, :], -2), axis=1)
        )
        num_present += tl.sum(present)
    return regions, num_present


@triton.jit(do_not_specialize=["num_splits", "num_regions", "dim"])
def merge_kernel(
    sums, counts, means, present, num_splits, num_regions, dim, smallest,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of ROWS regions, and scale them to unit length."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_regions
    components = tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None] & (components < dim)
    total = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    count = tl.zeros([ROWS], dtype=tl.int32)
    of_split = rows.to(tl.int64)
    for _ in range(num_splits):
        number = tl.load(counts + of_split, mask=inside, other=0)
        count += number
        written = mask & (number > 0)[:, None]
        total += tl.load(sums + of_split[:, None] * dim + components, mask=written, other=0.0)
        of_split += num_regions
    largest = tl.max(tl.abs(total), axis=1)
    scaled = total / tl.where(largest > smallest, largest, float("inf"))[:, None]
    norm = tl.sqrt(tl.sum(scaled * scaled, axis=1))
    mean = scaled / tl.maximum(norm, 1.0)[:, None]
    tl.store(means + rows.to(tl.int64)[:, None] * dim + components, mean, mask=mask)
    tl.store(present + rows, norm * largest > 1e-6 * count.to(tl.float32), mask=inside)
