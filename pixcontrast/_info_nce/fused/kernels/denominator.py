"""The denominator pass: an attention whose output is the negative part of the gradient.

Queries are anchors, keys and values are contrast entries. Each program computes the partial result
of a block of anchors over a split of the entries: the maximum, Σ exp(s − maximum) and
Σ exp(s − maximum)·k, to the base 2. A second kernel merges the partial results of Z in a fixed
order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import blocks, tile


@triton.jit
def accumulate(logits, entry_tile, maximum, total, weighted, settings, MASKED: tl.constexpr):
    """Merge a tile of similarities into a partial result. Masked similarities are −∞."""
    if settings.BOUNDED:
        likelihoods = tl.exp2(logits)
    else:
        raised = tl.maximum(maximum, tl.max(logits, 1))
        reference = raised
        if MASKED:
            # exp2(−∞ − −∞) is NaN: use 0 as the reference of a row without entries so far.
            reference = tl.where(raised == float("-inf"), 0.0, raised)
        rescaled = tl.exp2(maximum - reference)
        likelihoods = tl.exp2(logits - reference[:, None])
        total = total * rescaled
        if settings.WEIGHTED:
            weighted = weighted * rescaled[:, None]
        maximum = raised
    total += tl.sum(likelihoods, 1)
    if settings.WEIGHTED:
        weighted = tile.multiply(likelihoods, entry_tile, weighted, settings.PRECISION)
    return maximum, total, weighted


@triton.jit(do_not_specialize=["num_anchors", "num_entries", "num_blocks", "first_split"])
def denominator_kernel(
    anchors,
    num_anchors,
    entries,
    num_entries,
    survey,
    num_blocks,
    first_split,
    thresholds,
    partials,
    settings,
):
    """Program (i, k): the partial result of anchor block i over the k-th split of the entries.

    The first loop visits full blocks in which every entry belongs to Z of every anchor; they need
    no mask. The second loop visits all other nonempty blocks.
    """
    anchor_block = tl.program_id(0)
    first_anchor = anchor_block * settings.BLOCK_M
    split = tl.program_id(1)
    num_splits = tl.num_programs(1)
    valid_anchors = tl.load(anchors.num_valid)
    if first_anchor >= valid_anchors:
        return
    rows = tile.load_anchors(anchors, anchor_block, valid_anchors, settings.BLOCK_M, settings)
    anchor_ids, is_anchor, anchor_tile, _ = rows
    maximum = tl.full([settings.BLOCK_M], float("-inf"), dtype=tl.float32)
    total = tl.zeros([settings.BLOCK_M], dtype=tl.float32)
    # Without a gradient, `weighted` is not used and as small as possible.
    num_components: tl.constexpr = settings.BLOCK_D if settings.WEIGHTED else 1
    weighted = tl.zeros([settings.BLOCK_M, num_components], dtype=tl.float32)
    mined: tl.constexpr = thresholds is not None
    if mined:
        threshold = tile.load(thresholds.negative_logit, anchor_ids, is_anchor)[:, None]
        key = tile.load(thresholds.negative_key, anchor_ids, is_anchor)[:, None]
        bits = tile.load(anchors.key_bits, anchor_ids, is_anchor)[:, None]

    # The hull is a range of blocks that includes all whose mask depends on the anchor. The gap is a
    # range inside the hull whose entries are positives of all these anchors and not part of Z.
    hull = num_blocks * 0
    hull_stop = num_blocks * 0
    gap = num_blocks * 0
    gap_stop = num_blocks * 0
    if mined or not settings.ALL:
        low, high = blocks.class_range(anchors, first_anchor, valid_anchors, settings.BLOCK_M)
        hull, hull_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=False)
        if not settings.ALL:
            gap, gap_stop = blocks.of_classes(survey, num_blocks, low, high, ONLY=True)
    elif settings.IS_ANCHORS:
        hull = tl.minimum(first_anchor // settings.BLOCK_N, num_blocks)
        last_anchor = first_anchor + settings.BLOCK_M
        hull_stop = tl.minimum((last_anchor + settings.BLOCK_N - 1) // settings.BLOCK_N, num_blocks)

    num_full, num_mixed = blocks.counts_before(survey, num_blocks, num_blocks)
    full_before, mixed_before = blocks.counts_before(survey, num_blocks, hull)
    full_in_hull, mixed_in_hull = blocks.counts_before(survey, num_blocks, hull_stop)
    full_in_hull -= full_before
    mixed_in_hull -= mixed_before
    first, stop = blocks.split_range(num_full - full_in_hull, split, num_splits)
    # The hull divides each run of full blocks into two segments, see `blocks.full_segment`.
    for segment in range(2 * blocks.at(survey, num_blocks, blocks.NUM_RUNS, 0)):
        segment_start, segment_stop = blocks.full_segment(
            survey, num_blocks, segment, hull, hull_stop, full_in_hull, first, stop
        )
        for block in range(segment_start, segment_stop):
            entry_tile = tile.load_vectors(
                entries, block, None, anchors, settings.BLOCK_N, settings
            )
            logits = tile.similarities(anchor_tile, entry_tile, settings)
            if mined:
                ids = block * settings.BLOCK_N + tl.arange(0, settings.BLOCK_N)
                other_bits = tl.load(entries.key_bits + ids)[None, :]
                counted = tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
                logits = tl.where(counted, logits, float("-inf"))
            maximum, total, weighted = accumulate(
                logits, entry_tile, maximum, total, weighted, settings, mined
            )

    if mined and settings.ALL:
        own_threshold = tile.load(thresholds.positive_logit, anchor_ids, is_anchor)[:, None]
        own_key = tile.load(thresholds.positive_key, anchor_ids, is_anchor)[:, None]
    # The second loop visits the hull without the gap, then the mixed blocks outside the hull.
    before_hull, before_gap, in_gap, hull_visits = blocks.count_nonempty(
        survey, num_blocks, hull, hull_stop, gap, gap_stop
    )
    num_visits = hull_visits + num_mixed - mixed_in_hull
    first, stop = blocks.split_range(num_visits, split, num_splits)
    for visit in range(first, stop):
        if visit < hull_visits:
            index = blocks.skip_gap(before_hull + visit, before_gap, in_gap)
            block = blocks.at(survey, num_blocks, blocks.NONEMPTY, index)
        else:
            index = blocks.skip_gap(visit - hull_visits, mixed_before, mixed_in_hull)
            block = blocks.at(survey, num_blocks, blocks.MIXED, index)
        ids, entry_tile, logits, positive, negative, pair = tile.load_pairs(
            rows, entries, block, num_entries, anchors, settings
        )
        if mined:
            other_bits = tile.load(entries.key_bits, ids, ids < num_entries)[None, :]
            negative &= tile.is_selected(logits, threshold, key, bits, other_bits, POSITIVE=False)
            if settings.ALL:
                positive &= tile.is_selected(
                    logits, own_threshold, own_key, bits, other_bits, POSITIVE=True
                )
            pair = positive | negative
        counted = pair if settings.ALL else negative
        logits = tl.where(counted, logits, float("-inf"))
        maximum, total, weighted = accumulate(
            logits, entry_tile, maximum, total, weighted, settings, True
        )

    slots = anchor_ids.to(tl.int64) + (first_split + split) * num_anchors
    if not settings.BOUNDED:
        tl.store(partials.maxima + slots, maximum, mask=is_anchor)
    tl.store(partials.totals + slots, total, mask=is_anchor)
    if settings.WEIGHTED:
        tile.store_vectors(partials.weighted_sums, slots, is_anchor, weighted, settings)


@triton.jit
def lse_of(maximum, total):
    """Return Z from the maximum, which is finite, and Σ exp2(s − maximum); −∞ without an entry."""
    lse = tl.log2(tl.where(total == 0, 1.0, total)) + maximum
    return tl.where(total == 0, float("-inf"), lse)


@triton.jit(do_not_specialize=["num_anchors", "num_splits"])
def lse_kernel(
    num_valid,
    num_anchors,
    partials,
    num_splits,
    lse,
    BLOCK_M: tl.constexpr,
    SPLITS: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Merge Z of each anchor to the base 2 over all splits; −∞ without an entry."""
    ids = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = ids < tl.load(num_valid)
    maximum = tl.zeros([BLOCK_M], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    if not BOUNDED:
        maximum += float("-inf")
    # Load some splits at a time, because every step waits for the memory.
    for first in range(0, num_splits, SPLITS):
        splits = first + tl.arange(0, SPLITS)[:, None]
        slots = splits.to(tl.int64) * num_anchors + ids[None, :]
        written = (splits < num_splits) & inside[None, :]
        totals = tile.load(partials.totals, slots, written)
        if not BOUNDED:
            maxima = tile.load(partials.maxima, slots, written, float("-inf"))
            raised = tl.maximum(maximum, tl.max(maxima, 0))
            reference = tl.where(raised == float("-inf"), 0.0, raised)
            total *= tl.exp2(maximum - reference)
            totals *= tl.exp2(maxima - reference[None, :])
            maximum = raised
        total += tl.sum(totals, 0)
    maximum = tl.where(maximum == float("-inf"), 0.0, maximum)
    tl.store(lse + ids, lse_of(maximum, total), mask=inside)
