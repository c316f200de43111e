"""The two passes of the fused form over a subset of the contrast entries.

`merge_kernel` completes the loss if all entries are on one device. Under sharded banks the partial
results of several ranks are merged first; these operations over (M, D) take the kernel's place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import finite, inverse_or_zero
from pixcontrast._info_nce.fused.launch import on_device, positives_limit
from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast._info_nce.fused.passes import Partials, denominator_pass, positives_pass
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.results import DenominatorPartial, PositivesPartial
from pixcontrast._tensors import IGNORED


class FusedPasses:
    """The passes by kernels. Results are in the caller's order, Z to the base e.

    The backward computes the gradient of the anchors through themselves, as always in this form.
    """

    def __init__(self, problem: Problem) -> None:
        with on_device(problem.anchors.device):
            self._layout = lay_out(problem)
        self._valid = self._layout.anchors.labels != IGNORED

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        with on_device(self._layout.anchors.vectors.device):
            partials = denominator_pass(self._layout, None, want_gradient=want_gradient)
        lse = torch.where(self._valid, partials.lse, -torch.inf)
        mean = None
        if want_gradient:
            mean = self._unsort(self._negative_mean(partials, lse))
        return DenominatorPartial(self._unsort(lse / LOG2_E), mean)

    def positives(self, lse: Tensor, *, want_gradient: bool) -> PositivesPartial:
        layout = self._layout
        with on_device(layout.anchors.vectors.device):
            sorted_lse = (lse * LOG2_E)[layout.anchors.order]
            sums = positives_pass(layout, sorted_lse, None, want_gradient=want_gradient)
        count = self._sum_splits(sums.counts).to(torch.int64)
        inverse = inverse_or_zero(count, torch.float32)
        losses = self._sum_splits(sums.losses) * (positives_limit(layout) * inverse) / LOG2_E
        weight = torch.zeros_like(losses)
        if layout.problem.denominator == "negatives":
            weight = self._sum_splits(sums.weights) * inverse
        gradient = None
        if want_gradient:
            gradient = self._unsort(self._sum_splits(sums.vectors) * inverse[:, None])
        count, losses, weight = (self._unsort(column) for column in (count, losses, weight))
        return PositivesPartial(count, losses, weight, gradient)

    def _negative_mean(self, partials: Partials, lse: Tensor) -> Tensor:
        """Return (M, D) Σ exp2(s − Z)·k, added up in the order of the splits."""
        reference = finite(lse)
        mean = torch.zeros_like(self._layout.anchors.vectors, dtype=torch.float32)
        for split, weighted in enumerate(partials.weighted):
            maximum = partials.maxima[split]
            factor = torch.exp2((0.0 if self._layout.bounded else maximum) - reference)
            # Rows of ignored anchors are not written and may contain NaN.
            known = (self._valid & (factor > 0))[:, None]
            mean += torch.where(known, weighted * factor[:, None], 0.0)
        return mean

    def _sum_splits(self, partials: Tensor) -> Tensor:
        """Return the sum over splits; 0 for ignored anchors, whose rows are not written."""
        valid = self._valid.view(-1, *[1] * (partials.ndim - 2))
        total = torch.zeros(partials.shape[1:], dtype=partials.dtype, device=partials.device)
        for partial in partials:
            total += torch.where(valid, partial, torch.zeros_like(total))
        return total

    def _unsort(self, values: Tensor) -> Tensor:
        result = torch.empty_like(values)
        result[self._layout.anchors.order] = values
        return result
