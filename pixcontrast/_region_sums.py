"""How the kernel that sums regions is launched."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pixcontrast._region_kernel import region_kernel

BLOCK_REGIONS = 32
TILE_SIZE = 1 << 13
"""Components of a tile: it is held twice, and two programs share a processor."""
MOST_SHARES = 64
WARPS = 8
STAGES = 1
"""Programs that share a processor hide each other's loads; with more stages fewer would fit."""


def sum_regions(
    flat: Tensor, slots: Tensor, num_slots: int, smallest: float
) -> tuple[Tensor, Tensor]:
    """(B, R, D) float32 sums of unit vectors, and (B, P) which pixels have a direction.

    Args:
        flat: (B, D, P) float32 or of 16 bits, any strides.
        slots: (B, P) int64 in [0, num_slots), or negative.
        num_slots: R.
        smallest: a vector with no component above this has no direction.
    """
    num_images, dim, num_pixels = flat.shape
    usable = torch.empty(slots.shape, dtype=torch.bool, device=flat.device)
    block_dim, block_pixels = tile_shape(dim)
    num_blocks = triton.cdiv(num_slots, BLOCK_REGIONS)
    num_shares = min(MOST_SHARES, triton.cdiv(num_pixels, 4 * block_pixels))
    sums = flat.new_empty(num_shares, num_images, num_slots, dim, dtype=torch.float32)
    with torch.cuda.device_of(flat):  # type: ignore[no-untyped-call]
        region_kernel[(num_blocks, num_shares, num_images)](
            flat,
            slots.contiguous(),
            usable,
            sums,
            num_pixels,
            num_slots,
            num_shares,
            *flat.stride(),
            smallest,
            D=dim,
            BLOCK_D=block_dim,
            BLOCK_P=block_pixels,
            BLOCK_R=BLOCK_REGIONS,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return sums.sum(dim=0), usable


def tile_shape(dim: int) -> tuple[int, int]:
    """Components and pixels of a tile."""
    block_dim = max(16, int(triton.next_power_of_2(dim)))
    return block_dim, min(64, max(16, TILE_SIZE // block_dim))
