"""Which blocks of entries a program visits, by the survey of what stands in them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def overlap(first_classes, last_classes, num_blocks, least, largest, CHUNK: tl.constexpr):
    """The first and one past the last block of entries that may hold a class in a range."""
    first = num_blocks
    stop = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        there = blocks < num_blocks
        first_class = tl.load(first_classes + blocks, mask=there, other=1)
        last_class = tl.load(last_classes + blocks, mask=there, other=0)
        hit = there & (first_class <= largest) & (last_class >= least)
        first = tl.minimum(first, tl.min(tl.where(hit, blocks, num_blocks)))
        stop = tl.maximum(stop, tl.max(tl.where(hit, blocks + 1, 0)))
    return first, tl.maximum(first, stop)


@triton.jit
def alone(first_classes, last_classes, num_blocks, number, CHUNK: tl.constexpr):
    """The first and one past the last of the blocks that hold one class and nothing else.

    None, a start that is the stop, where they do not stand together.
    """
    first = num_blocks
    stop = num_blocks * 0
    count = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        there = blocks < num_blocks
        first_class = tl.load(first_classes + blocks, mask=there, other=-1)
        last_class = tl.load(last_classes + blocks, mask=there, other=-1)
        hit = there & (first_class == number) & (last_class == number)
        first = tl.minimum(first, tl.min(tl.where(hit, blocks, num_blocks)))
        stop = tl.maximum(stop, tl.max(tl.where(hit, blocks + 1, 0)))
        count += tl.sum(hit.to(tl.int32))
    return first, tl.where(stop - first == count, stop, first)


@triton.jit
def part_of_run(run_start, run_stop, before, mine, mine_stop, gap, gap_stop):
    """The blocks of a run that lie in a share of all runs' blocks, but for those in a gap.

    `before` blocks stand in the runs before it; the share is the blocks `mine` to `mine_stop` of
    all. A start and a stop to count the visits from and to, the visit that meets the gap, and by
    how many blocks that and later ones are further on.
    """
    start = run_start + tl.maximum(mine - before, 0)
    stop = tl.minimum(run_stop, run_start + mine_stop - before)
    stop = tl.maximum(stop, start)
    skip = tl.minimum(tl.maximum(gap, start), stop)
    num_skipped = tl.minimum(tl.maximum(gap_stop, skip), stop) - skip
    return start, stop - num_skipped, skip, num_skipped
