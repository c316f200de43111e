"""Find the thresholds of mining by kernels. The number of launches does not depend on values."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.radix_select import count_kernel, digit_kernel
from pixcontrast._info_nce.fused.launch import launch_rows, launch_splits, plan_splits
from pixcontrast._info_nce.fused.layout import Layout
from pixcontrast._info_nce.radix_select import CountedCandidates
from pixcontrast._info_nce.thresholds import Thresholds, find_thresholds
from pixcontrast._triton import ceil_div
from pixcontrast.samplers import HardNegativeSampler

# Number of values of the digit that each pass finds, and its lowest bit.
DIGITS = (16, 28), (16, 24), (16, 20), (1024, 10), (1024, 0)


def select_thresholds(layout: Layout, sampler: HardNegativeSampler) -> Thresholds:
    """Return the thresholds (M, 1) of the sorted anchors, similarities to the base 2."""
    num_same = _count_same(layout) if sampler.strategy == "semi-hard" else None
    negatives = _Candidates(layout, num_same, positive=False)
    positives = _Candidates(layout, num_same, positive=True)
    like = torch.empty_like(layout.order, dtype=torch.float32)[:, None]
    found = find_thresholds(sampler, negatives, positives, like)
    return Thresholds(*(column.contiguous() for column in found))


def _count_same(layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the number of entries (M,) of each anchor's class, and that of all valid entries."""
    anchor_classes = layout.anchors.classes
    # Class −1 has index 0. Integer sums do not depend on the order of the atomic additions.
    of_class = anchor_classes.new_zeros(2 * len(anchor_classes) + 3)
    one = anchor_classes.new_ones(1)
    for tensor in layout.contrast:
        classes = tensor.entries.classes
        of_class.index_add_(0, classes + 1, one.expand(len(classes)))
    return of_class.index_select(0, anchor_classes + 1), of_class[1:].sum()


class _Candidates(CountedCandidates):
    """The positives, or the negatives, of the sorted anchors; see `thresholds.Candidates`."""

    def __init__(
        self, layout: Layout, num_same: tuple[Tensor, Tensor] | None, *, positive: bool
    ) -> None:
        self._layout = layout
        self._num_same = num_same
        self._positive = positive

    def available(self) -> Tensor:
        assert self._num_same is not None  # of every strategy that asks
        same, total = self._num_same
        num_self = sum(tensor.is_anchors for tensor in self._layout.contrast)
        if not self._positive:
            same = total - same
        elif num_self > 0:
            same = same - num_self
        return same[:, None]

    def kth_integer(self, k: Tensor | int, min_hardness: Tensor | None, *, by_key: bool) -> Tensor:
        # Unsigned to signed integers of the same order.
        return self._kth_unsigned(k, min_hardness, by_key) ^ torch.iinfo(torch.int32).min

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        # The smallest key is the largest integer, inverted.
        return self._kth_unsigned(k, min_hardness, True) ^ torch.iinfo(torch.int32).max

    def _kth_unsigned(self, k: Tensor | int, min_hardness: Tensor | None, by_key: bool) -> Tensor:
        layout = self._layout
        configuration = layout.configurations.denominator
        plan = [splits._replace(weighted=False) for splits in plan_splits(layout, configuration)]
        num_splits = sum(splits.num_splits for splits in plan)
        # One tensor of zeros for all: a launch takes longer than the work.
        columns = layout.anchors.classes.new_zeros(1026, layout.num_anchors)
        histogram, prefixes, above = columns[:1024].view(1, -1, 1024), columns[1024], columns[1025]
        few = prefixes.new_empty(num_splits, layout.num_anchors, 16)
        requested = torch.full_like(prefixes, k) if isinstance(k, int) else k.to(torch.int32)
        hardness = None if min_hardness is None else min_hardness.contiguous()
        for num_digits, shift in DIGITS:
            counts = few if num_digits == 16 else histogram
            launch_splits(
                count_kernel,
                layout,
                configuration,
                plan,
                (hardness, prefixes, counts, shift, int(self._positive)),
                by_key,
            )
            tile = Configuration(32 if num_digits == 16 else 4, 1, 4, 3)
            num_valid, num_anchors = layout.anchors.num_valid, layout.num_anchors
            launch_rows(
                digit_kernel,
                (ceil_div(num_anchors, tile.rows),),
                layout,
                tile,
                (num_valid, num_anchors, counts, len(counts), requested, prefixes, above, shift),
                *(num_digits, tile.rows),
            )
        return prefixes[:, None]
