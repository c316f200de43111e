"""What mining asks of each anchor, by kernels: a fixed number of launches, whatever is there."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.kernels.selection import count_kernel, digit_kernel
from pixcontrast._info_nce.fused.launch import (
    constants_of,
    entries_arguments,
    scale_and_limit,
    slots_of,
)
from pixcontrast._info_nce.fused.layout import CHUNK, Layout
from pixcontrast._info_nce.radix_select import DIGIT_BITS, from_ordered_int
from pixcontrast._info_nce.random_keys import LARGEST_KEY
from pixcontrast._info_nce.thresholds import Thresholds, pool_size

LEAST_IMAGE = torch.iinfo(torch.int32).min
MERGED_ROWS = 32


def select_thresholds(layout: Layout) -> Thresholds:
    """(M, 1) what mining asks of each of the sorted anchors, similarities to the base 2."""
    mining = layout.problem.negative_sampler
    assert mining is not None
    negative_hardness, negative_key = _side(layout, mining.num_negatives, positive=False)
    positive_hardness, positive_key = _side(layout, mining.num_positives, positive=True)
    found = (negative_hardness, negative_key, -positive_hardness, positive_key)
    return Thresholds(*(column[:, None].contiguous() for column in found))


def _side(layout: Layout, count: int | None, *, positive: bool) -> tuple[Tensor, Tensor]:
    """(M,) the least hardness and the largest key with which a candidate still counts."""
    mining = layout.problem.negative_sampler
    assert mining is not None
    classes = layout.rows.classes
    hardness = torch.full(classes.shape, -torch.inf, device=classes.device)
    key = torch.full_like(classes, LARGEST_KEY)
    if count is None:
        return hardness, key
    wanted = torch.full_like(classes, count)
    pooled = mining.strategy == "semi-hard"
    if mining.strategy != "random":
        among = wanted
        if pooled:
            among = pool_size(mining, _available(layout, positive=positive)).to(torch.int32)
        hardness = _hardness_of(_select(layout, among, None, positive=positive, by_key=False))
    if mining.strategy != "hardest":
        least = hardness if pooled else None
        key = -1 - _select(layout, wanted, least, positive=positive, by_key=True)
    return hardness, key


def _select(
    layout: Layout, wanted: Tensor, leasts: Tensor | None, *, positive: bool, by_key: bool
) -> Tensor:
    """(M,) int32, the `wanted`-th largest image of each anchor's candidates; the least if fewer."""
    rows = layout.rows
    num_anchors = len(rows.labels)
    configuration = layout.configurations.denominator
    slots = slots_of(layout, configuration, want_gradient=False)
    num_slots = sum(taken.num_shares for taken in slots)
    counts = rows.classes.new_empty(num_slots, num_anchors, 1 << DIGIT_BITS)
    prefixes = torch.zeros_like(rows.classes)
    hardness = torch.zeros_like(prefixes, dtype=torch.float32) if leasts is None else leasts
    for shift in range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
        for piece, _, first, num_shares in slots:
            constants = constants_of(layout, piece, configuration)
            del constants["MINED"]
            count_kernel[(triton.cdiv(num_anchors, configuration.rows), num_shares)](
                rows.vectors,
                rows.classes,
                rows.num_present,
                *entries_arguments(piece, layout),
                piece.first_classes,
                piece.last_classes,
                piece.num_blocks,
                *piece.runs,
                hardness,
                rows.bits,
                piece.bits,
                prefixes,
                counts[first:],
                num_anchors,
                shift,
                *scale_and_limit(layout),
                CHUNK=CHUNK,
                IS_ANCHORS=piece.is_anchors,
                POSITIVE=positive,
                BY_KEY=by_key,
                POOLED=leasts is not None,
                **constants,
            )
        digit_kernel[(triton.cdiv(num_anchors, MERGED_ROWS),)](
            counts,
            num_slots,
            wanted,
            prefixes,
            rows.num_present,
            num_anchors,
            shift,
            BLOCK=MERGED_ROWS,
        )
    return prefixes ^ LEAST_IMAGE


def _hardness_of(images: Tensor) -> Tensor:
    """float32 of the same order; −∞ for the least image, which no number has."""
    return from_ordered_int(images).masked_fill(images == LEAST_IMAGE, -torch.inf)


def _available(layout: Layout, *, positive: bool) -> Tensor:
    """(M,) how many candidates each anchor has; integers, which add up to the same in any order."""
    rows = layout.rows
    of_class = rows.classes.new_zeros(2 * len(rows.labels) + 3)
    among_themselves = 0
    for piece in layout.pieces:
        of_class.scatter_add_(0, piece.classes.long() + 1, torch.ones_like(piece.classes))
        among_themselves += piece.is_anchors
    same = of_class[rows.classes.long() + 1]
    return same - among_themselves if positive else of_class[1:].sum() - same
