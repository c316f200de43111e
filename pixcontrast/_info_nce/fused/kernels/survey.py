"""Survey of the contrast entries: the classes in each block, and which blocks need a mask.

A bank is sorted by class: a block of its entries holds one class or two, or nothing that was
written. Later passes skip blocks by these numbers, which stay on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_entries", "num_steps"])
def survey_kernel(
    labels,
    anchor_labels,
    num_valid,
    classes,
    first_classes,
    last_classes,
    block_sizes,
    num_entries,
    num_steps,
    BLOCK_N: tl.constexpr,
):
    """Program j: the class of each entry of block j, their range, and how many are valid.

    A class is an odd number that ascends with the labels of the anchors, an even number for a label
    that no anchor has, and −1 for an ignored entry. In a block without valid entries the first
    class is larger than the last one.
    """
    block = tl.program_id(0)
    ids = block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = ids < num_entries
    label = tl.load(labels + ids, mask=inside, other=-1)
    # The number of valid anchors with a smaller label, by bisection of the sorted labels.
    num_anchors = tl.load(num_valid)
    low = tl.zeros([BLOCK_N], dtype=tl.int32)
    high = low + num_anchors
    for _ in range(num_steps):
        middle = (low + high) // 2
        searching = low < high
        smaller = tl.load(anchor_labels + middle, mask=searching, other=0) < label
        low = tl.where(searching & smaller, middle + 1, low)
        high = tl.where(searching & (smaller == 0), middle, high)
    found = low < num_anchors
    known = found & (tl.load(anchor_labels + low, mask=found, other=0) == label)
    valid = label >= 0
    entry_class = tl.where(valid, 2 * low + known.to(tl.int32), -1)
    tl.store(classes + ids, entry_class, mask=inside)
    tl.store(first_classes + block, tl.min(tl.where(valid, entry_class, 0x7FFFFFFF)))
    tl.store(last_classes + block, tl.max(entry_class))
    tl.store(block_sizes + block, tl.sum(valid.to(tl.int32)))


@triton.jit(do_not_specialize=["num_blocks"])
def block_index_kernel(
    block_sizes,
    index,
    num_blocks,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """List the full blocks and the mixed blocks. One program; `class_blocks` names the rows.

    A full block has BLOCK_N valid entries, a mixed block fewer, an empty block none.
    """
    stride = num_blocks + 1
    num_full = num_blocks * 0
    num_mixed = num_blocks * 0
    num_runs = num_blocks * 0
    for start in range(0, num_blocks, CHUNK):
        blocks = start + tl.arange(0, CHUNK)
        inside = blocks < num_blocks
        size = tl.load(block_sizes + blocks, mask=inside, other=0)
        size_before = tl.load(block_sizes + blocks - 1, mask=inside & (blocks > 0), other=0)
        size_after = tl.load(block_sizes + blocks + 1, mask=blocks + 1 < num_blocks, other=0)
        full = (size == BLOCK_N).to(tl.int32)
        mixed = ((size > 0) & (size < BLOCK_N)).to(tl.int32)
        full_before = num_full + tl.cumsum(full, 0) - full
        mixed_before = num_mixed + tl.cumsum(mixed, 0) - mixed
        tl.store(index + blocks, full_before, mask=inside)
        tl.store(index + stride + blocks, mixed_before, mask=inside)
        tl.store(index + 2 * stride + mixed_before, blocks, mask=mixed != 0)
        tl.store(index + 3 * stride + full_before + mixed_before, blocks, mask=(full | mixed) != 0)
        starts = ((full != 0) & (size_before != BLOCK_N)).to(tl.int32)
        stops = (full != 0) & (size_after != BLOCK_N)
        # The run of a full block is the last one that started at or before it.
        run = num_runs + tl.cumsum(starts, 0) - 1
        tl.store(index + 4 * stride + run, blocks, mask=starts != 0)
        tl.store(index + 5 * stride + run, blocks + 1, mask=stops)
        num_full += tl.sum(full)
        num_mixed += tl.sum(mixed)
        num_runs += tl.sum(starts)
    tl.store(index + num_blocks, num_full)
    tl.store(index + stride + num_blocks, num_mixed)
    tl.store(index + 6 * stride, num_runs)
