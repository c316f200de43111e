"""What stands in each block of entries, so that later passes skip what they need not look at.

A bank is sorted as it stands: a block of its entries holds one class or two, or nothing that has
been written. The host never sees these numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_entries", "num_steps"])
def survey_kernel(
    labels,
    anchor_labels,
    num_present,
    classes,
    first_classes,
    last_classes,
    num_entries,
    num_steps,
    BLOCK_N: tl.constexpr,
):
    """The class of each entry, and the least and the largest of each block.

    A class is an odd number, ascending with the labels; an even one where no anchor has the label;
    −1 for an entry that takes no part. A block of nothing else has a least above its largest.
    """
    block = tl.program_id(0)
    numbers = block * BLOCK_N + tl.arange(0, BLOCK_N)
    within = numbers < num_entries
    found = tl.load(labels + numbers, mask=within, other=-1)
    # How many anchors have a smaller label, by bisection of those that take part.
    present = tl.load(num_present)
    low = tl.zeros([BLOCK_N], dtype=tl.int32)
    high = low + present
    for _ in range(num_steps):
        middle = (low + high) // 2
        open_ = low < high
        smaller = tl.load(anchor_labels + middle, mask=open_, other=0) < found
        low = tl.where(open_ & smaller, middle + 1, low)
        high = tl.where(open_ & (smaller == 0), middle, high)
    there = low < present
    known = there & (tl.load(anchor_labels + low, mask=there, other=0) == found)
    numbered = tl.where(found >= 0, 2 * low + known.to(tl.int32), -1)
    tl.store(classes + numbers, numbered, mask=within)
    tl.store(first_classes + block, tl.min(tl.where(found >= 0, numbered, 0x7FFFFFFF)))
    tl.store(last_classes + block, tl.max(numbered))


@triton.jit(do_not_specialize=["num_blocks"])
def runs_kernel(
    last_classes,
    run_starts,
    run_stops,
    run_befores,
    counts,
    num_blocks,
    CHUNK: tl.constexpr,
):
    """Runs of blocks that are not empty: where they start, stop, and how many stand before.

    `counts` gets the number of runs and of blocks in them. One program.
    """
    num_starts = num_blocks * 0
    num_stops = num_blocks * 0
    num_there = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        there = tl.load(last_classes + blocks, mask=inside, other=-1) >= 0
        left = tl.load(last_classes + blocks - 1, mask=inside & (blocks > 0), other=-1) >= 0
        right = tl.load(last_classes + blocks + 1, mask=blocks + 1 < num_blocks, other=-1) >= 0
        starts = (there & (left == 0)).to(tl.int32)
        stops = (there & (right == 0)).to(tl.int32)
        ordinal = num_there + tl.cumsum(there.to(tl.int32), 0) - 1
        run = num_starts + tl.cumsum(starts, 0) - 1
        tl.store(run_starts + run, blocks, mask=starts != 0)
        tl.store(run_befores + run, ordinal, mask=starts != 0)
        tl.store(run_stops + num_stops + tl.cumsum(stops, 0) - 1, blocks + 1, mask=stops != 0)
        num_starts += tl.sum(starts)
        num_stops += tl.sum(stops)
        num_there += tl.sum(there.to(tl.int32))
    tl.store(counts, num_starts)
    tl.store(counts + 1, num_there)
