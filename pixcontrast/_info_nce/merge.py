"""Online softmax, and how partial results over subsets of the contrast entries are merged.

A partial result holds, for each anchor, a reference r, Σ exp(s − r) and Σ exp(s − r)·k over the
entries seen so far. Any split of the entries (tiles, contrast tensors, ranks) merges to the same
result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import finite
from pixcontrast._info_nce.results import DenominatorPartial, PositivesPartial


class OnlineSoftmax:
    """Running reference, sum and, if `weighted`, weighted sum of exp(s) of every anchor.

    If all similarities are so small that exp can neither overflow nor underflow (`bounded`), the
    reference is 0, which saves two passes over every tile. Otherwise it is the running maximum.
    There is one row (m, D) for each anchor; only shape, dtype and device of the rows are used.
    """

    def __init__(self, rows: Tensor, *, bounded: bool, weighted: bool) -> None:
        self._bounded = bounded
        self._reference = rows.new_full((rows.shape[0],), 0.0 if bounded else -torch.inf)
        self._total = rows.new_zeros(rows.shape[0])
        self._weighted = torch.zeros_like(rows) if weighted else None

    def add_tile(self, block: slice, logits: Tensor, entries: Tensor) -> None:
        """Add a tile of similarities (R, T), which is overwritten; −∞ leaves an entry out."""
        if not self._bounded:
            self._raise_reference(block, logits.amax(dim=1))
            logits.sub_(finite(self._reference[block])[:, None])
        likelihoods = logits.exp_()
        # A product with ones reads the tile faster than sum does.
        self._total[block].addmv_(likelihoods, likelihoods.new_ones(likelihoods.shape[1]))
        if self._weighted is not None:
            self._weighted[block].addmm_(likelihoods, entries)

    def add_partial(self, block: slice, lse: Tensor, mean: Tensor) -> None:
        """Add Z (R,) and o (R, D) over further entries for the anchors `block`."""
        if not self._bounded:
            self._raise_reference(block, lse)
            lse = lse - finite(self._reference[block])
        total = lse.exp()
        self._total[block] += total
        if self._weighted is not None:
            self._weighted[block].addcmul_(mean, total[:, None])

    def _raise_reference(self, block: slice, maximum: Tensor) -> None:
        raised = torch.maximum(self._reference[block], maximum)
        scale = torch.exp(self._reference[block] - finite(raised))
        self._reference[block] = raised
        self._total[block] *= scale
        if self._weighted is not None:
            self._weighted[block] *= scale[:, None]

    def partial(self) -> DenominatorPartial:
        """Return Z and o over the entries so far; −∞ and zeros for an anchor without an entry."""
        mean = None
        if self._weighted is not None:
            mean = self._weighted / torch.where(self._total > 0, self._total, 1.0)[:, None]
        return DenominatorPartial(finite(self._reference) + self._total.log(), mean)


def merge_denominators(partials: Sequence[DenominatorPartial]) -> DenominatorPartial:
    """Merge Z and o over disjoint subsets of the entries, in the given order."""
    first = partials[0].negative_mean
    weighted = first is not None
    rows = partials[0].lse[:, None] if first is None else first
    merged = OnlineSoftmax(rows, bounded=False, weighted=weighted)
    every_row = slice(0, len(rows))
    for lse, negative_mean in partials:
        merged.add_partial(every_row, lse, rows if negative_mean is None else negative_mean)
    return merged.partial()


def merge_positives(partials: Sequence[PositivesPartial]) -> PositivesPartial:
    """Merge means over disjoint subsets of the positives, in the given order."""
    total = torch.stack([partial.num_positives for partial in partials]).sum(dim=0)
    first = partials[0]
    losses, weight = torch.zeros_like(first.losses), torch.zeros_like(first.weight)
    positive_grad = None if first.positive_grad is None else torch.zeros_like(first.positive_grad)
    for partial in partials:
        # A weighted mean, because the sum of many finite terms could overflow.
        fraction = partial.num_positives.to(losses.dtype) / total.clamp(min=1)
        losses.addcmul_(partial.losses, fraction)
        weight.addcmul_(partial.weight, fraction)
        if positive_grad is not None and partial.positive_grad is not None:
            positive_grad.addcmul_(partial.positive_grad, fraction[:, None])
    return PositivesPartial(total, losses, weight, positive_grad)
