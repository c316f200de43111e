"""What every launch of the fused form is given, and into how many programs it is split."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.layout import Columns, Layout, padded_dim
from pixcontrast._info_nce.problem import LOG2_E
from pixcontrast._info_nce.thresholds import Thresholds

# A share of the entries should be worth a program: so many blocks at the least.
LEAST_BLOCKS = 4
# Programs that wait for each other's last wave should be fewer than this part of all.
FULL_WAVES = 0.9
MOST_SHARES = 64


def has_both_roles(layout: Layout, piece: Columns) -> bool:
    """Whether the backward makes a piece's gradient as anchors and as entries in one pass."""
    return piece.is_anchors and layout.problem.negative_sampler is None


class Slots(NamedTuple):
    """The slots in which the programs of a piece leave their results.

    Attributes:
        piece: which has entries.
        weighted: whether they hold a part of the gradient: the backward makes that of the anchors
            against themselves, both roles in one pass.
        first: the first of them.
        num_shares: how many, one for each share of the entries.
    """

    piece: Columns
    weighted: bool
    first: int
    num_shares: int


def slots_of(layout: Layout, configuration: Configuration, want_gradient: bool) -> list[Slots]:
    """Of every piece that has entries; those with a part of the gradient stand first."""
    marked = [
        (piece, want_gradient and not has_both_roles(layout, piece))
        for piece in layout.pieces
        if piece.num_blocks > 0
    ]
    slots: list[Slots] = []
    first = 0
    for piece, weighted in sorted(marked, key=lambda mark: not mark[1]):
        num_shares = _num_shares(layout, configuration, piece.num_blocks)
        slots.append(Slots(piece, weighted, first, num_shares))
        first += num_shares
    return slots


def _num_shares(layout: Layout, configuration: Configuration, num_blocks: int) -> int:
    """Into how many shares the entries of a piece are split, for every processor to have work."""
    row_blocks = triton.cdiv(len(layout.rows.classes), configuration.rows)
    return shares_that_fill(
        layout.num_processors, row_blocks, triton.cdiv(num_blocks, LEAST_BLOCKS)
    )


def shares_that_fill(num_processors: int, num_blocks: int, most: int) -> int:
    """The fewest shares, at most `most`, that keep the processors busy to the last wave."""
    best, fullest = 1, 0.0
    for shares in range(1, max(1, min(most, MOST_SHARES)) + 1):
        programs = num_blocks * shares
        full = programs / (triton.cdiv(programs, num_processors) * num_processors)
        if full > fullest:
            best, fullest = shares, full
        if fullest >= FULL_WAVES:
            break
    return best


def entries_arguments(piece: Columns, layout: Layout) -> tuple[Any, ...]:
    largest = torch.finfo(layout.problem.product_dtype).max
    row_stride, column_stride = piece.entries.stride()
    return piece.entries, piece.classes, len(piece), row_stride, column_stride, largest


def mining_arguments(
    layout: Layout, piece: Columns, thresholds: Thresholds | None
) -> tuple[Tensor, ...]:
    """The thresholds of the sorted anchors, and both parts of the keys."""
    asked = (layout.rows.classes,) * 4 if thresholds is None else tuple(thresholds)
    return *asked, layout.rows.bits, piece.bits


def scale_and_limit(layout: Layout) -> tuple[float, float]:
    problem = layout.problem
    largest = torch.finfo(torch.float32).max
    return min(problem.inverse_temperature * LOG2_E, largest), problem.logit_limit * LOG2_E


def is_clean(layout: Layout, piece: Columns) -> bool:
    """Whether what is absent is known to hold finite numbers."""
    return layout.problem.unit_length or piece.is_anchors


def expansion(layout: Layout) -> float:
    """A power of two no smaller than any number of positives."""
    total = sum(len(piece) for piece in layout.pieces)
    return float(triton.next_power_of_2(max(1, total)))


def constants_of(layout: Layout, piece: Columns, configuration: Configuration) -> dict[str, Any]:
    problem = layout.problem
    dim = problem.anchors.shape[1]
    largest = torch.finfo(problem.product_dtype).max
    return {
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": configuration.rows,
        "BLOCK_N": configuration.columns,
        "BOUNDED": layout.bounded,
        "MINED": problem.negative_sampler is not None,
        "NARROWS": torch.finfo(piece.entries.dtype).max > largest,
        "PRECISION": layout.precision,
        "WIDEN": layout.interpreted,
        "num_warps": configuration.warps,
        "num_stages": configuration.stages,
    }
