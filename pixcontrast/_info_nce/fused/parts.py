"""The fused form in parts: what its kernels leave in slots, merged for each anchor.

`finish` does that and the rest in one kernel where all entries are on one device; these few passes
over (M, D) stand in for it where parts come from several ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import inverse_or_zero
from pixcontrast._info_nce.fused.forward import on_device
from pixcontrast._info_nce.fused.launch import expansion
from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast._info_nce.fused.passes import Partials, denominator_pass, positives_pass
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.results import DenominatorPartial, PositivesPartial
from pixcontrast._labels import IGNORED


class FusedPasses:
    """The two passes by kernels; results are in the caller's order, Z to the base e.

    The gradient of anchors through themselves is left to the backward, as ever in the fused form.
    """

    def __init__(self, problem: Problem) -> None:
        with on_device(problem.anchors.device):
            self._layout = lay_out(problem)
        self._present = self._layout.rows.labels != IGNORED

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        with on_device(self._layout.rows.vectors.device):
            partials = denominator_pass(self._layout, None, want_gradient=want_gradient)
        log_sums = torch.where(self._present, partials.log_sums, -torch.inf)
        mean = None
        if want_gradient:
            mean = self._in_callers_order(self._mean(partials, log_sums))
        return DenominatorPartial(self._in_callers_order(log_sums / LOG2_E), mean)

    def positives(self, log_sum: Tensor, *, want_gradient: bool) -> PositivesPartial:
        layout = self._layout
        log_sums = (log_sum * LOG2_E)[layout.rows.order]
        nothing = log_sums.new_empty(0)
        partials = Partials(nothing, nothing, nothing, log_sums)
        with on_device(layout.rows.vectors.device):
            sums = positives_pass(layout, partials, None, want_gradient=want_gradient)
        count = self._of_slots(sums.counts).to(torch.int64)
        share = inverse_or_zero(count, torch.float32)
        losses = self._of_slots(sums.losses) * (expansion(layout) * share) / LOG2_E
        weight = torch.zeros_like(losses)
        if layout.problem.denominator == "negatives":
            weight = self._of_slots(sums.weights) * share
        pull = None
        if want_gradient:
            pull = self._in_callers_order(self._of_slots(sums.pulls) * share[:, None])
        number, losses, weight = (self._in_callers_order(one) for one in (count, losses, weight))
        return PositivesPartial(number, losses, weight, pull)

    def _mean(self, partials: Partials, log_sums: Tensor) -> Tensor:
        """(M, D) Σ exp2(s − Z)·k, slot after slot."""
        # Without an entry Z is −∞, and there is nothing to weigh.
        reference = torch.where(log_sums == -torch.inf, 0.0, log_sums)
        mean = torch.zeros_like(self._layout.rows.vectors, dtype=torch.float32)
        for slot, weighted in enumerate(partials.weighted):
            maximum = torch.zeros_like(reference) if self._layout.bounded else partials.maxima[slot]
            factor = torch.exp2(maximum - reference)
            there = (self._present & (factor > 0))[:, None]
            mean += torch.where(there, weighted * factor[:, None], 0.0)
        return mean

    def _of_slots(self, slots: Tensor) -> Tensor:
        """The sum over the first dimension; rows of absent anchors, which hold anything, are 0."""
        there = self._present.view(-1, *[1] * (slots.ndim - 2))
        total = torch.zeros(slots.shape[1:], dtype=slots.dtype, device=slots.device)
        for slot in slots:
            total += torch.where(there, slot, torch.zeros_like(total))
        return total

    def _in_callers_order(self, values: Tensor) -> Tensor:
        result = torch.empty_like(values)
        result[self._layout.rows.order] = values
        return result
