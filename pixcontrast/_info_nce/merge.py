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
    """Running reference, sum and weighted sum of exp(s) of every anchor.

    Args:
        rows (Tensor): (m, D), one row for each anchor; only shape, dtype and device are used.
        bounded (bool): whether all similarities are so small that exp can neither overflow nor
            underflow. The reference is then 0, which saves two passes over every tile. Otherwise
            the reference is the running maximum.
        weighted (bool): whether to sum the weighted entries.
    """

    def __init__(self, rows: Tensor, *, bounded: bool, weighted: bool) -> None:
        self._bounded = bounded
        self._reference = rows.new_full((rows.shape[0],), 0.0 if bounded else -torch.inf)
        self._total = rows.new_zeros(rows.shape[0])
        self._weighted = torch.zeros_like(rows) if weighted else None

    def add_tile(self, block: slice, logits: Tensor, entries: Tensor) -> None:
        """Add a tile of the anchors `block`.

        Args:
            block (slice): R consecutive rows.
            logits (Tensor): (R, T) similarities, overwritten; −∞ for entries to leave out.
            entries (Tensor): (T, D) contrast entries.
        """
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

    def merge_halves(self) -> None:
        """Merge the second half of the rows into the first, for anchors that are stored twice."""
        num_anchors = self._total.shape[0] // 2
        first, second = slice(0, num_anchors), slice(num_anchors, 2 * num_anchors)
        if not self._bounded:
            maximum = torch.maximum(self._reference[first], self._reference[second])
            self._raise_reference(first, maximum)
            self._raise_reference(second, maximum)
        self._reference = self._reference[first]
        self._total = self._total[first] + self._total[second]
        if self._weighted is not None:
            self._weighted = self._weighted[first].add_(self._weighted[second])

    def _raise_reference(self, block: slice, maximum: Tensor) -> None:
        raised = torch.maximum(self._reference[block], maximum)
        scale = torch.exp(self._reference[block] - finite(raised))
        self._reference[block] = raised
        self._total[block] *= scale
        if self._weighted is not None:
            self._weighted[block] *= scale[:, None]

    def lse(self) -> Tensor:
        """Return (m,) Z; −∞ for an anchor without an entry."""
        return finite(self._reference) + self._total.log()

    def mean(self) -> Tensor:
        """Return (m, D) o = Σ softmax(s)·k; zeros for an anchor without an entry."""
        assert self._weighted is not None
        return self._weighted / torch.where(self._total > 0, self._total, 1.0)[:, None]


def merge_denominators(partials: Sequence[DenominatorPartial]) -> DenominatorPartial:
    """Merge Z and o over disjoint subsets of the entries, in the given order."""
    first = partials[0].negative_mean
    weighted = first is not None
    rows = partials[0].lse[:, None] if first is None else first
    merged = OnlineSoftmax(rows, bounded=False, weighted=weighted)
    every_row = slice(0, len(rows))
    for lse, negative_mean in partials:
        merged.add_partial(every_row, lse, rows if negative_mean is None else negative_mean)
    return DenominatorPartial(merged.lse(), merged.mean() if weighted else None)


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
