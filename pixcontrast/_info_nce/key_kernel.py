"""Triton kernel of the bits of random keys, see `thresholds.PairKeys`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._info_nce.fused.kernels.tile import mix_bits
from pixcontrast._launch import launch_on
from pixcontrast._triton import ceil_div

BLOCK = 1024


def write_bits(seed: Tensor, ids: Tensor, *, of_anchors: bool) -> Tensor:
    """Compute `thresholds.anchor_bits` or `thresholds.entry_bits` of contiguous ids (n,)."""
    bits = torch.empty_like(ids, dtype=torch.int32)
    if ids.numel() > 0:
        launch_on(
            ids,
            bits_kernel,
            (ceil_div(ids.numel(), BLOCK),),
            *(seed, ids, bits, ids.numel(), int(of_anchors)),
            BLOCK=BLOCK,
        )
    return bits


@triton.jit(do_not_specialize=["num_ids", "of_anchors"])
def bits_kernel(seed, ids, bits, num_ids, of_anchors, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_ids
    drawn = tl.load(seed)
    low = (drawn & 0x7FFFFFFF).to(tl.int32)
    high = ((drawn >> 31) & 0x7FFFFFFF).to(tl.int32)
    numbers = tl.load(ids + index, mask=inside, other=0).to(tl.int32)
    mixed = mix_bits(numbers + tl.where(of_anchors != 0, high, low))
    tl.store(bits + index, tl.where(of_anchors != 0, mix_bits(mixed ^ low), mixed), mask=inside)
