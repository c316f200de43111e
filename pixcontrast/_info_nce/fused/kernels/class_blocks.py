"""Which blocks of contrast entries a program visits, by the survey.

`index` is the block index that `survey.block_index_kernel` writes. Its rows have num_blocks + 1
integers each:

    0  the number of full blocks before each block, and in total
    1  the number of mixed blocks before each block, and in total
    2  the ids of the mixed blocks
    3  the ids of all blocks that are not empty
    4  the first block of each run of full blocks
    5  one past the last block of each run of full blocks
    6  the number of runs
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def overlap(first_classes, last_classes, num_blocks, low, high, CHUNK: tl.constexpr):
    """Return the first block that may hold a class in [low, high], and one past the last one."""
    first = num_blocks
    stop = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        first_class = tl.load(first_classes + blocks, mask=inside, other=1)
        last_class = tl.load(last_classes + blocks, mask=inside, other=0)
        hit = inside & (first_class <= high) & (last_class >= low)
        first = tl.minimum(first, tl.min(tl.where(hit, blocks, num_blocks)))
        stop = tl.maximum(stop, tl.max(tl.where(hit, blocks + 1, 0)))
    return first, tl.maximum(first, stop)


@triton.jit
def blocks_of_class(first_classes, last_classes, num_blocks, number, CHUNK: tl.constexpr):
    """Return the range of the blocks whose valid entries all have one class.

    The range is empty if these blocks are not contiguous.
    """
    first = num_blocks
    stop = num_blocks * 0
    count = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        first_class = tl.load(first_classes + blocks, mask=inside, other=-1)
        last_class = tl.load(last_classes + blocks, mask=inside, other=-1)
        hit = inside & (first_class == number) & (last_class == number)
        first = tl.minimum(first, tl.min(tl.where(hit, blocks, num_blocks)))
        stop = tl.maximum(stop, tl.max(tl.where(hit, blocks + 1, 0)))
        count += tl.sum(hit.to(tl.int32))
    return first, tl.where(stop - first == count, stop, first)


@triton.jit
def split_range(total, split, num_splits):
    """Return the range of one of `num_splits` nearly equal parts of `total` visits."""
    return total * split // num_splits, total * (split + 1) // num_splits


@triton.jit
def full_in(index, first, stop):
    """Return the number of full blocks in a range."""
    return tl.load(index + stop) - tl.load(index + first)


@triton.jit
def mixed_before(index, num_blocks, block):
    """Return the number of mixed blocks before a block."""
    return tl.load(index + num_blocks + 1 + block)


@triton.jit
def nonempty_before(index, num_blocks, block):
    """Return the number of blocks before a block that are not empty."""
    return tl.load(index + block) + tl.load(index + num_blocks + 1 + block)


@triton.jit
def num_segments(index, num_blocks):
    """Return the number of segments that `full_segment` takes: two for each run."""
    return 2 * tl.load(index + 6 * (num_blocks + 1))


@triton.jit
def full_segment(index, num_blocks, segment, hull, hull_stop, first, stop):
    """Return the blocks of a segment that belong to a split of the full blocks outside a hull.

    Each run of full blocks has two segments, one before the hull and one after it. The full blocks
    outside the hull are counted in their order; the split is the range [first, stop) of them.
    """
    stride = num_blocks + 1
    run_start = tl.load(index + 4 * stride + segment // 2)
    run_stop = tl.load(index + 5 * stride + segment // 2)
    is_after = segment % 2 == 1
    start = tl.where(is_after, tl.maximum(run_start, hull_stop), run_start)
    segment_stop = tl.where(is_after, run_stop, tl.minimum(run_stop, hull))
    before = tl.load(index + run_start) + start - run_start
    before -= tl.where(is_after, full_in(index, hull, hull_stop), 0)
    return start + tl.maximum(first - before, 0), tl.minimum(segment_stop, start + stop - before)


@triton.jit
def nonempty_block(index, num_blocks, visit):
    """Return the id of a block by its number among those that are not empty."""
    return tl.load(index + 3 * (num_blocks + 1) + visit)


@triton.jit
def mixed_block(index, num_blocks, visit):
    """Return the id of a block by its number among the mixed blocks."""
    return tl.load(index + 2 * (num_blocks + 1) + visit)
