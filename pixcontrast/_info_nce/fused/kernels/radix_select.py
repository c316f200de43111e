"""Find thresholds of mining over streamed tiles: the k-th largest candidate of each anchor.

Candidates are compared as unsigned integers of the same order. An anchor has a range of integers
that contains the k-th largest. Each round, one pass of `count_kernel` over the candidates, reduces
it, either by a histogram of the range or, if few candidates are left in it, by storing those.
Rounds start with a sample of the entries, from which `advance_kernel` estimates the first range.
The number of candidates above the range shows whether it contains the k-th largest; if not, the
next range has all integers. All counts are integers, whose sum does not depend on the order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile

# Standard deviations of the number of sampled candidates that the first range covers on each side.
MARGIN = tl.constexpr(4.0)
# At least the number of threads of a program, and the rows of a tile.
LARGEST_PROGRAM = tl.constexpr(512)


class Search(NamedTuple):
    """The state of the search for each of R anchors, int32. All zeros: store all candidates.

    Attributes:
        columns: (R, columns) histogram, or stored candidates. Zeros before each round.
        beyond: (R,) number of candidates above the range. Zeros before each round.
        below: (R,) number of positive integers below the range.
        excluded: (R,) number of positive integers outside the range.
        step: (R,) 0: store the candidates in the range; s > 0: a column of the histogram counts
            2^(s − 1) integers; −1: the search has ended.
        stored: (R,) number of stored candidates.
    """

    columns: Any
    beyond: Any
    below: Any
    excluded: Any
    step: Any
    stored: Any


@triton.jit(
    do_not_specialize=[
        "num_anchors",
        "num_entries",
        "num_blocks",
        "first_split",
        "num_columns",
        "of_positives",
    ]
)
def count_kernel(
    anchors,
    num_anchors,
    entries,
    num_entries,
    survey,
    num_blocks,
    first_split,
    min_hardness,
    rows,
    search,
    num_columns,
    of_positives,
    settings,
    BY_KEY: tl.constexpr,
):
    """Program (i, k): count or store the candidates of anchor block i in the k-th split.

    `rows` has the index of each anchor in `search` and `min_hardness`. Candidates are compared by
    hardness (the similarity of a negative, minus that of a positive) or, with `BY_KEY`, by their
    random keys, where smaller keys rank higher. With `min_hardness`, only candidates that are at
    least as hard are considered.
    """
    anchor_block = tl.program_id(0)
    first_anchor = anchor_block * settings.BLOCK_M
    split = tl.program_id(1)
    valid_anchors = tl.load(anchors.num_valid)
    if first_anchor >= valid_anchors:
        return
    anchor_ids = first_anchor + tl.arange(0, settings.BLOCK_M)
    is_anchor = anchor_ids < valid_anchors
    row = tile.load(rows, anchor_ids, is_anchor)
    step = tile.load(search.step, row, is_anchor, -1)
    if tl.max(step) < 0:
        return
    loaded = tile.load_anchors(anchors, anchor_block, valid_anchors, settings.BLOCK_M, settings)
    bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[:, None]
    if min_hardness is not None:
        pool_hardness = tile.load(min_hardness, row, is_anchor)[:, None]
    below = tile.load(search.below, row, is_anchor).to(tl.uint32, bitcast=True)
    size = (-1 - tile.load(search.excluded, row, is_anchor)).to(tl.uint32, bitcast=True)
    lower, last = (below + 1)[:, None], (below + size)[:, None]
    counted = tl.where(step > 0, size, 0)[:, None]
    stored = tl.where(step == 0, size, 0)[:, None]
    any_counted, any_stored = tl.max(counted) > 0, tl.max(stored) > 0
    shift = tl.maximum(step - 1, 0).to(tl.uint32)[:, None]
    columns = search.columns + row[:, None] * num_columns
    beyond = tl.zeros([settings.BLOCK_M], dtype=tl.int32)

    # Visit the nonempty blocks with candidates, and leave out a gap without candidates.
    low, high = blocks.class_range(anchors, first_anchor, valid_anchors, settings.BLOCK_M)
    is_positive = of_positives != 0
    sign = tl.where(is_positive, -1.0, 1.0)
    if is_positive:
        hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
        gap = hull
        gap_stop = hull
    else:
        hull = num_blocks * 0
        hull_stop = num_blocks
        gap, gap_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=True)
    before_hull, before_gap, in_gap, num_visits = blocks.count_nonempty(
        survey, num_blocks, hull, hull_stop, gap, gap_stop
    )
    first, stop = blocks.split_range(num_visits, split, tl.num_programs(1))
    for visit in range(first, stop):
        index = blocks.skip_gap(before_hull + visit, before_gap, in_gap)
        block = blocks.at(survey, num_blocks, blocks.NONEMPTY, index)
        # With `BY_KEY` and without `min_hardness`, the compiler removes the unused similarities.
        ids, _, hardness, positive, _, pair = tile.load_pairs(
            loaded, entries, block, num_entries, anchors, settings
        )
        candidate = pair & (positive == is_positive)
        # The sum has no negative zero.
        hardness = hardness * sign + 0.0
        if BY_KEY:
            other_bits = tile.load(entries.key_bits, ids, ids < num_entries)[None, :]
            values = 0x7FFFFFFF ^ tile.mix_bits(bits ^ other_bits)
            if min_hardness is not None:
                candidate = candidate & (hardness >= pool_hardness)
        else:
            values = hardness.to(tl.int32, bitcast=True)
            values ^= (values >> 31) | -2147483648
        # No range contains 0.
        values = tl.where(candidate, values, 0)
        unsigned = values.to(tl.uint32, bitcast=True)
        offset = unsigned - lower
        beyond += tl.sum((unsigned > last).to(tl.int32), 1)
        if any_counted:
            column = (offset >> shift).to(tl.int32)
            tl.atomic_add(columns + column, 1, mask=offset < counted, sem="relaxed")
        if any_stored:
            kept = (offset < stored).to(tl.int32)
            if tl.max(kept) > 0:
                place = _reserve(search.stored + row, tl.sum(kept, 1))[:, None]
                place += tl.cumsum(kept, 1) - kept
                tl.store(columns + place, values, mask=(kept != 0) & (place < num_columns))

    tl.atomic_add(search.beyond + row, beyond, mask=(step >= 0) & (beyond > 0), sem="relaxed")


@triton.jit
def _reserve(counters, numbers):
    """Add numbers (m,) to counters in memory, and return what these were before.

    Before Triton 3.5, an atomic operation on fewer numbers than threads returns 0 in most threads.
    So each number has several columns here, of which the first counts.
    """
    num_columns: tl.constexpr = LARGEST_PROGRAM // numbers.shape[0]
    column = tl.arange(0, num_columns)[None, :]
    spread = numbers[:, None] + tl.zeros_like(column)
    counted = (column == 0) & (spread > 0)
    before = tl.atomic_add(counters[:, None] + column * 0, spread, counted, "relaxed")
    return tl.sum(tl.where(counted, before, 0), 1)


@triton.jit
def kth_largest(values, k):
    """Return the k-th largest of unsigned integers (m, n) by row, (m,).

    It is 0 for k > n, and has all bits set for k < 1.
    """
    found = tl.zeros([values.shape[0]], dtype=tl.uint32)
    bit = found + 0x80000000
    for _ in range(32):
        reached = tl.sum((values >= (found + bit)[:, None]).to(tl.int32), 1)
        found = tl.where(reached >= k, found + bit, found)
        bit = bit >> 1
    return found


@triton.jit(do_not_specialize=["num_rows", "stride", "most_stored"])
def advance_kernel(
    search,
    num_rows,
    requested,
    found,
    stride,
    most_stored,
    BY_KEY: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Reduce the range of each anchor to that of its k-th largest candidate, by the last pass.

    If that is one integer, convert it to a hardness or a key, `found`. A `stride` above 0: the
    candidates stored are those of every stride-th entry. If a range has at most `most_stored`
    candidates, the next pass stores them.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    step = tile.load(search.step, rows, rows < num_rows, -1)
    if tl.max(step) < 0:
        return
    searched = step >= 0
    indices = tl.arange(0, COLUMNS)[None, :]
    columns = search.columns + rows.to(tl.int64)[:, None] * COLUMNS + indices
    counts = tl.load(columns, mask=searched[:, None], other=0)
    beyond = tile.load(search.beyond, rows, searched)
    k = tile.load(requested, rows, searched)
    lower = 1 + tile.load(search.below, rows, searched).to(tl.uint32, bitcast=True)
    size = (-1 - tile.load(search.excluded, rows, searched)).to(tl.uint32, bitcast=True)
    # Several threads load the numbers of a row, and one of them stores new ones.
    tl.debug_barrier()
    tl.store(columns, tl.zeros_like(counts), mask=searched[:, None])
    tl.store(search.beyond + rows, tl.zeros_like(beyond), mask=searched)
    tl.store(search.stored + rows, tl.zeros_like(beyond), mask=searched)

    # A histogram: continue with the last column that k candidates reach. If there is none, continue
    # with all integers, unless these are what has been counted.
    reached = (beyond + tl.sum(counts, 1))[:, None] - tl.cumsum(counts, 1) + counts
    column = tl.sum((reached >= k[:, None]).to(tl.int32), 1) - 1
    num_left = tl.sum(tl.where(indices == column[:, None], counts, 0), 1)
    contains = (step > 0) & (beyond < k) & (column >= 0)
    fewer = (step > 0) & (beyond < k) & (column < 0) & (lower == 1)
    shift = tl.maximum(step - 1, 0).to(tl.uint32)
    start = column.to(tl.uint32) << shift
    width = (tl.zeros_like(size) + 1) << shift
    value = tl.where(contains, lower + start, tl.where(fewer, 0, 1))
    size = tl.where(contains, tl.minimum(size - start, width), 0xFFFFFFFF)

    # Stored candidates: find the k-th largest, or integers below and above it in most samples.
    if tl.min(tl.abs(step)) == 0:
        expected = k / tl.maximum(stride, 1).to(tl.float32)
        margin = MARGIN * tl.sqrt(expected)
        rank = tl.where(stride > 0, tl.ceil(expected + margin).to(tl.int32) + 3, k - beyond)
        values = counts.to(tl.uint32, bitcast=True)
        least = kth_largest(values, rank)
        value = tl.where(step == 0, least, value)
        if stride > 0:
            value = tl.maximum(value, 1)
            most = kth_largest(values, tl.floor(expected - margin).to(tl.int32))
            size = tl.where(step == 0, most - value + 1, size)
    is_found = (step + stride == 0) | (contains & (shift == 0)) | fewer

    # The smallest shift by which each integer of the range has a column.
    too_wide = ((size - 1)[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) >= COLUMNS
    next_step = 1 + tl.sum((too_wide & (size > 0)[:, None]).to(tl.int32), 1)
    next_step = tl.where(contains & (num_left <= most_stored), 0, next_step)
    ordered = value.to(tl.int32, bitcast=True)
    tl.store(search.below + rows, ordered - 1, mask=searched)
    tl.store(search.excluded + rows, -1 - size.to(tl.int32, bitcast=True), mask=searched)
    tl.store(search.step + rows, tl.where(is_found, -1, next_step), mask=searched)
    ordered ^= -2147483648
    if BY_KEY:
        result = -1 - ordered
    else:
        hardness = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
        hardness = hardness.to(tl.float32, bitcast=True)
        result = tl.where(value == 0, float("-inf"), hardness)
    tl.store(found + rows, result, mask=searched & is_found)
