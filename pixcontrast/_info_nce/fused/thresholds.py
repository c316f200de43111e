"""Find the thresholds of mining by kernels. The number of launches does not depend on values."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.radix_select import count_kernel, digit_kernel
from pixcontrast._info_nce.fused.launch import ceil_div, launch, launch_splits, plan_splits
from pixcontrast._info_nce.fused.layout import Layout
from pixcontrast._info_nce.radix_select import CountedCandidates
from pixcontrast._info_nce.thresholds import Thresholds, find_thresholds
from pixcontrast.samplers import HardNegativeSampler

# Number of values of the digit that each pass finds, and its lowest bit.
DIGITS = (16, 28), (16, 24), (16, 20), (1024, 10), (1024, 0)


def select_thresholds(layout: Layout, sampler: HardNegativeSampler) -> Thresholds:
    """Return the thresholds (M, 1) of the sorted anchors, similarities to the base 2."""
    negatives = _Candidates(layout, positive=False)
    positives = _Candidates(layout, positive=True)
    like = torch.empty_like(layout.order, dtype=torch.float32)[:, None]
    found = find_thresholds(sampler, negatives, positives, like)
    return Thresholds(*(column.contiguous() for column in found))


class _Candidates(CountedCandidates):
    """The positives, or the negatives, of the sorted anchors; see `thresholds.Candidates`."""

    def __init__(self, layout: Layout, *, positive: bool) -> None:
        self._layout = layout
        self._positive = positive

    def available(self) -> Tensor:
        layout = self._layout
        anchor_classes = layout.anchors.classes
        # Class −1 has index 0. Integer sums do not depend on the order of the atomic additions.
        of_class = anchor_classes.new_zeros(2 * len(anchor_classes) + 3)
        num_self = 0
        for tensor in layout.contrast:
            classes = tensor.entries.classes
            of_class.scatter_add_(0, classes.long() + 1, torch.ones_like(classes))
            num_self += tensor.is_anchors
        same = of_class[anchor_classes.long() + 1]
        count = same - num_self if self._positive else of_class[1:].sum() - same
        return count[:, None].to(torch.int64)

    def kth_integer(self, k: Tensor | int, min_hardness: Tensor | None, *, by_key: bool) -> Tensor:
        layout = self._layout
        configuration = layout.configurations.denominator
        plan = [splits._replace(weighted=False) for splits in plan_splits(layout, configuration)]
        num_splits = sum(splits.num_splits for splits in plan)
        prefixes = torch.zeros_like(layout.anchors.classes)
        above = torch.zeros_like(prefixes)
        few = prefixes.new_empty(num_splits, len(layout), 16)
        histogram = prefixes.new_zeros(1, len(layout), 1024)
        requested = torch.zeros_like(prefixes)[:, None].add_(k).to(torch.int32)
        hardness = None if min_hardness is None else min_hardness.contiguous()
        for num_digits, shift in DIGITS:
            counts = few if num_digits == 16 else histogram
            launch_splits(
                count_kernel,
                layout,
                configuration,
                plan,
                min_hardness=hardness,
                prefixes=prefixes,
                counts=counts,
                shift=shift,
                of_positives=int(self._positive),
                BY_KEY=by_key,
            )
            tile = Configuration(32 if num_digits == 16 else 4, 1, 4, 3)
            launch(
                digit_kernel,
                (ceil_div(len(layout), tile.rows),),
                layout,
                tile,
                counts=counts,
                num_splits=len(counts),
                requested=requested,
                prefixes=prefixes,
                above=above,
                shift=shift,
                NUM_DIGITS=num_digits,
            )
        # Unsigned to signed integers of the same order.
        return (prefixes ^ torch.iinfo(torch.int32).min)[:, None]
