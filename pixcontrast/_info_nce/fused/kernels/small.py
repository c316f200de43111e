"""The forward of a few anchors against themselves, in one kernel without sorting.

Each program computes a block of anchors against all of them, twice: Z first, then the positives.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import denominator, positives, tile


@triton.jit(do_not_specialize=["num_anchors"])
def small_kernel(anchors, num_anchors, result, shrink, expand, settings):
    """Program i: the results of anchor block i. `expand` is 1 / `shrink`, as in `merge_kernel`."""
    rows = tile.load_anchors(anchors, tl.program_id(0), num_anchors, settings.BLOCK_M, settings)
    maximum = tl.full([settings.BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    num_blocks = (num_anchors + settings.BLOCK_N - 1) // settings.BLOCK_N
    for block in range(num_blocks):
        _, entry_tile, logits, _, negative, pair = tile.load_pairs(
            rows, anchors, block, num_anchors, anchors, settings
        )
        logits = tl.where(pair if settings.ALL else negative, logits, float("-inf"))
        maximum, total, _ = denominator.accumulate(
            logits, entry_tile, maximum, total, total, settings, True
        )
    z = denominator.lse_of(tl.where(maximum == float("-inf"), 0.0, maximum), total)
    count = tl.zeros([settings.BLOCK_M], dtype=tl.int32)
    loss = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    weight = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    for block in range(num_blocks):
        _, _, logits, positive, _, _ = tile.load_pairs(
            rows, anchors, block, num_anchors, anchors, settings
        )
        count, loss, weight, _ = positives.add_positives(
            logits, positive, z[:, None], count, loss, weight, shrink, settings
        )
    completed = positives.complete(z, count, loss, weight, expand, settings.ALL)
    positives.store_results(result, rows[0], rows[0], rows[0] < num_anchors, z, completed)
