"""The thresholds of mining by kernels, with a number of launches that does not depend on values."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.kernels.radix_select import count_kernel, digit_kernel
from pixcontrast._info_nce.fused.launch import launch, launch_splits, plan_splits
from pixcontrast._info_nce.fused.layout import Layout
from pixcontrast._info_nce.radix_select import DIGIT_BITS, NUM_DIGITS, from_ordered_int
from pixcontrast._info_nce.thresholds import Thresholds, find_thresholds
from pixcontrast.samplers import HardNegativeSampler

DIGIT_ROWS = 32
NO_CANDIDATE = torch.iinfo(torch.int32).min
"""The integer that no hardness and no key is mapped to."""


def select_thresholds(layout: Layout, sampler: HardNegativeSampler) -> Thresholds:
    """Return the thresholds (M, 1) of the sorted anchors, similarities to the base 2."""
    negatives = _Candidates(layout, positive=False)
    positives = _Candidates(layout, positive=True)
    like = torch.empty_like(layout.anchor_classes, dtype=torch.float32)[:, None]
    found = find_thresholds(sampler, negatives, positives, like)
    return Thresholds(*(column.contiguous() for column in found))


class _Candidates:
    """The positives, or the negatives, of the sorted anchors; see `thresholds.Candidates`."""

    def __init__(self, layout: Layout, *, positive: bool) -> None:
        self._layout = layout
        self._positive = positive

    def available(self) -> Tensor:
        layout = self._layout
        anchor_classes = layout.anchor_classes
        # Class −1 has index 0. Integer sums do not depend on the order of the atomic additions.
        of_class = anchor_classes.new_zeros(2 * len(anchor_classes) + 3)
        num_self = 0
        for tensor in layout.contrast:
            classes = tensor.entry_classes
            of_class.scatter_add_(0, classes.long() + 1, torch.ones_like(classes))
            num_self += tensor.is_anchors
        same = of_class[anchor_classes.long() + 1]
        count = same - num_self if self._positive else of_class[1:].sum() - same
        return count[:, None].to(torch.int64)

    def kth_hardness(self, k: Tensor) -> Tensor:
        integers = self._select(k, None, by_key=False)
        hardness = from_ordered_int(integers)
        return hardness.masked_fill(integers == NO_CANDIDATE, -torch.inf)[:, None]

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        requested = torch.full_like(self._layout.anchor_classes, k)
        return -1 - self._select(requested, min_hardness, by_key=True)[:, None]

    def _select(self, k: Tensor, min_hardness: Tensor | None, *, by_key: bool) -> Tensor:
        """Return (M,) int32, the k-th largest value of each anchor's candidates.

        It is `NO_CANDIDATE` for anchors with fewer candidates.
        """
        layout = self._layout
        configuration = layout.configurations.denominator
        plan = plan_splits(layout, configuration, want_gradient=False)
        num_splits = sum(splits.num_splits for splits in plan)
        num_anchors = len(layout.anchors)
        prefixes = torch.zeros_like(layout.anchor_classes)
        counts = prefixes.new_empty(num_splits, num_anchors, NUM_DIGITS)
        requested = k.reshape(-1).to(torch.int32)
        hardness = torch.zeros_like(prefixes, dtype=torch.float32)
        if min_hardness is not None:
            hardness = min_hardness.reshape(-1).contiguous()
        for shift in range(32 - DIGIT_BITS, -1, -DIGIT_BITS):
            launch_splits(
                count_kernel,
                layout,
                configuration,
                plan,
                {"counts": counts},
                min_hardness=hardness,
                prefixes=prefixes,
                shift=shift,
                POSITIVE=self._positive,
                BY_KEY=by_key,
                POOLED=min_hardness is not None,
            )
            launch(
                digit_kernel,
                (triton.cdiv(num_anchors, DIGIT_ROWS),),
                layout,
                counts=counts,
                num_splits=num_splits,
                requested=requested,
                prefixes=prefixes,
                shift=shift,
                BLOCK=DIGIT_ROWS,
            )
        return prefixes ^ NO_CANDIDATE
