"""The survey: which classes each block of contrast entries has, and which blocks to visit.

A bank is sorted by class: most blocks of its entries have one or two classes, or no written slot. A
full block has only valid entries, a mixed block some, an empty block none. By the survey, which
stays on the device, the kernels decide which blocks to visit and to mask. Its rows have
num_blocks + 1 integers each:

    0  the smallest class in each block; in an empty block it is larger than row 1
    1  the largest class in each block
    2  the number of valid entries of each block
    3  the number of full blocks before each block, and in total
    4  the number of mixed blocks before each block, and in total
    5  the ids of the mixed blocks
    6  the ids of all blocks that are not empty
    7  the first block of each run of full blocks
    8  one past the last block of each run of full blocks
    9  the number of runs
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import tile
from pixcontrast._pixels.group_kernels import search_sorted

SURVEY_ROWS = 10
FULL_BEFORE, MIXED_BEFORE, MIXED, NONEMPTY, RUN_STARTS, RUN_STOPS, NUM_RUNS = map(
    tl.constexpr, range(3, SURVEY_ROWS)
)
# Number of blocks of the survey that a program reads at a time.
CHUNK = tl.constexpr(1024)
# Number of components of the anchors that a program copies at a time.
COMPONENTS = tl.constexpr(32)


@triton.jit(do_not_specialize=["dim", "num_anchors", "own_blocks", "num_steps", "num_entries"])
def survey_kernel(
    source,
    order,
    vectors,
    num_valid,
    own,
    other,
    dim,
    num_anchors,
    own_blocks,
    num_steps,
    num_entries,
    BLOCK_N: tl.constexpr,
):
    """Each program surveys a block of the anchors, or one of another contrast tensor.

    The first `own_blocks` programs also write `vectors`, the anchors by `order`. The labels of
    anchors, `own.labels`, descend.
    """
    program = tl.program_id(0)
    if program == 0:
        ignored = num_anchors * 0 - 1
        count = search_sorted(own.labels, num_anchors, ignored, num_steps, DESCENDING=True)
        tl.store(num_valid, count)
    if program < own_blocks:
        ids, inside, valid = survey_block(
            own,
            program,
            own_blocks,
            num_anchors,
            own.labels,
            num_anchors,
            num_steps,
            BLOCK_N,
        )
        # Ignored anchors may contain NaN and are multiplied too: 0 · NaN is NaN.
        rows = source.vectors + tl.load(order + ids, mask=valid, other=0) * dim
        for start in range(0, dim, COMPONENTS):
            components = start + tl.arange(0, COMPONENTS)
            exists = (components < dim)[None, :]
            pointers = rows[:, None] + components[None, :]
            values = tl.load(pointers, mask=valid[:, None] & exists, other=0.0)
            if source.largest is not None:
                values = tile.clamp(values.to(tl.float32), source.largest)
            values = values.to(vectors.dtype.element_ty)
            slots = ids.to(tl.int64)[:, None] * dim + components[None, :]
            tl.store(vectors + slots, values, mask=inside[:, None] & exists)
    else:
        block = program - own_blocks
        num_blocks = tl.num_programs(0) - own_blocks
        survey_block(
            other, block, num_blocks, num_entries, own.labels, num_anchors, num_steps, BLOCK_N
        )


@triton.jit
def survey_block(
    given, block, num_blocks, num_labels, anchor_labels, num_anchors, num_steps, SIZE: tl.constexpr
):
    """Write the classes of a block of labels, and rows 0 to 2 of the survey.

    Classes ascend while labels descend: odd numbers for labels of valid anchors, even numbers for
    other labels, −1 for ignored labels. Return ids, which have a label, and which a valid one.
    """
    ids = block * SIZE + tl.arange(0, SIZE)
    inside = ids < num_labels
    label = tl.load(given.labels + ids, mask=inside, other=-1)
    valid = label >= 0
    # The number of anchors with a larger label.
    low = search_sorted(anchor_labels, num_anchors, label, num_steps, DESCENDING=True).to(tl.int32)
    found = low < num_anchors
    known = found & (tl.load(anchor_labels + low, mask=found, other=-1) == label)
    label_class = tl.where(valid, 2 * low + known.to(tl.int32), -1)
    tl.store(given.classes + ids, label_class, mask=inside)
    stride = num_blocks + 1
    tl.store(given.survey + block, tl.min(tl.where(valid, label_class, 0x7FFFFFFF)))
    tl.store(given.survey + stride + block, tl.max(label_class))
    tl.store(given.survey + 2 * stride + block, tl.sum(valid.to(tl.int32)))
    return ids, inside, valid


@triton.jit(do_not_specialize=["num_blocks"])
def index_kernel(survey, num_blocks, BLOCK_N: tl.constexpr):
    """Write rows 3 to 9 of the survey, in one program."""
    stride = num_blocks + 1
    sizes = survey + 2 * stride
    num_full = num_blocks * 0
    num_mixed = num_blocks * 0
    num_runs = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        size = tl.load(sizes + blocks, mask=inside, other=0)
        size_before = tl.load(sizes + blocks - 1, mask=inside & (blocks > 0), other=0)
        size_after = tl.load(sizes + blocks + 1, mask=blocks + 1 < num_blocks, other=0)
        full = (size == BLOCK_N).to(tl.int32)
        mixed = ((size > 0) & (size < BLOCK_N)).to(tl.int32)
        full_before = num_full + tl.cumsum(full, 0) - full
        mixed_before = num_mixed + tl.cumsum(mixed, 0) - mixed
        tl.store(survey + stride * FULL_BEFORE + blocks, full_before, mask=inside)
        tl.store(survey + stride * MIXED_BEFORE + blocks, mixed_before, mask=inside)
        tl.store(survey + stride * MIXED + mixed_before, blocks, mask=mixed != 0)
        nonempty_before = full_before + mixed_before
        tl.store(survey + stride * NONEMPTY + nonempty_before, blocks, mask=(full | mixed) != 0)
        starts = ((full != 0) & (size_before != BLOCK_N)).to(tl.int32)
        stops = (full != 0) & (size_after != BLOCK_N)
        # The run of a full block is the last one that started at or before it.
        run = num_runs + tl.cumsum(starts, 0) - 1
        tl.store(survey + stride * RUN_STARTS + run, blocks, mask=starts != 0)
        tl.store(survey + stride * RUN_STOPS + run, blocks + 1, mask=stops)
        num_full += tl.sum(full)
        num_mixed += tl.sum(mixed)
        num_runs += tl.sum(starts)
    tl.store(survey + stride * FULL_BEFORE + num_blocks, num_full)
    tl.store(survey + stride * MIXED_BEFORE + num_blocks, num_mixed)
    tl.store(survey + stride * NUM_RUNS, num_runs)


@triton.jit
def at(survey, num_blocks, ROW: tl.constexpr, index):
    """Return one integer of the survey."""
    return tl.load(survey + (num_blocks + 1) * ROW + index)


@triton.jit
def class_range(anchors, first_anchor, num_valid, BLOCK: tl.constexpr):
    """Return the smallest and the largest class in a block of sorted anchors."""
    last = tl.minimum(first_anchor + BLOCK, num_valid) - 1
    return tl.load(anchors.classes + first_anchor), tl.load(anchors.classes + last)


@triton.jit
def of_classes(survey, num_blocks, low, high, ONLY: tl.constexpr):
    """Return the first block that may have a class in [low, high], and one past the last one.

    With `ONLY`, return the range of the blocks whose only class is low == high. It is empty if
    low < high, or if there are other blocks between them.
    """
    first = num_blocks
    stop = num_blocks * 0
    count = num_blocks * 0
    searched = num_blocks
    if ONLY:
        searched = tl.where(low == high, num_blocks, 0)
    for start in range(0, searched, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        smallest = tl.load(survey + blocks, mask=inside, other=1)
        largest = tl.load(survey + num_blocks + 1 + blocks, mask=inside, other=0)
        if ONLY:
            hit = inside & (smallest == low) & (largest == low)
            count += tl.sum(hit.to(tl.int32))
        else:
            hit = inside & (smallest <= high) & (largest >= low)
        first = tl.minimum(first, tl.min(tl.where(hit, blocks, num_blocks)))
        stop = tl.maximum(stop, tl.max(tl.where(hit, blocks + 1, 0)))
    stop = tl.maximum(first, stop)
    if ONLY:
        stop = tl.where(stop - first == count, stop, first)
    return first, stop


@triton.jit
def split_range(total, split, num_splits):
    """Return the range of one of `num_splits` nearly equal splits of `total` visits."""
    return total * split // num_splits, total * (split + 1) // num_splits


@triton.jit
def counts_before(survey, num_blocks, block):
    """Return the number of full blocks and of mixed blocks before a block."""
    full = at(survey, num_blocks, FULL_BEFORE, block)
    return full, at(survey, num_blocks, MIXED_BEFORE, block)


@triton.jit
def full_segment(survey, num_blocks, segment, hull, hull_stop, full_in_hull, first, stop):
    """Return the range of blocks of a segment that belong to a split.

    A hull divides each run of full blocks into two segments, one before and one after it. The full
    blocks outside the hull are numbered in order, and the split is the range [first, stop) of these
    numbers.
    """
    run_start = at(survey, num_blocks, RUN_STARTS, segment // 2)
    run_stop = at(survey, num_blocks, RUN_STOPS, segment // 2)
    is_after = segment % 2 == 1
    start = tl.where(is_after, tl.maximum(run_start, hull_stop), run_start)
    segment_stop = tl.where(is_after, run_stop, tl.minimum(run_stop, hull))
    before = at(survey, num_blocks, FULL_BEFORE, run_start)
    before += start - run_start - tl.where(is_after, full_in_hull, 0)
    return start + tl.maximum(first - before, 0), tl.minimum(segment_stop, start + stop - before)


@triton.jit
def nonempty_before(survey, num_blocks, block):
    """Return the number of nonempty blocks before a block."""
    full, mixed = counts_before(survey, num_blocks, block)
    return full + mixed


@triton.jit
def count_nonempty(survey, num_blocks, hull, hull_stop, gap, gap_stop):
    """Count the nonempty blocks before the hull, before the gap, in the gap, and to visit.

    The blocks to visit are those of the hull outside the gap.
    """
    before_hull = nonempty_before(survey, num_blocks, hull)
    before_gap = nonempty_before(survey, num_blocks, gap)
    in_gap = nonempty_before(survey, num_blocks, gap_stop) - before_gap
    visits = nonempty_before(survey, num_blocks, hull_stop) - before_hull - in_gap
    return before_hull, before_gap, in_gap, visits


@triton.jit
def skip_gap(index, before_gap, in_gap):
    """Convert an index that leaves out the blocks of a gap to one that counts them."""
    return index + tl.where(index >= before_gap, in_gap, 0)
