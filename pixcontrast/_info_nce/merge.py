"""A partial result over some of the contrast entries, and the one rule that merges two of them.

For each anchor a partial holds a reference r, Σ exp(s − r) and Σ exp(s − r)·k over the entries
seen so far. Any split of the entries (tiles, pieces) merges to the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Partial:
    """The running (reference, total, weighted sum) of every anchor.

    Attributes:
        reference: (m,) what the exponents are relative to: the maximum so far, or 0 throughout
            where the similarities are known to be small enough that exp cannot overflow or
            underflow (`bounded`), which saves two passes over every tile.
        total: (m,) Σ exp(s − reference).
        weighted: (m, D) Σ exp(s − reference)·k, or None where no gradient is wanted.
    """

    def __init__(self, rows: Tensor, *, bounded: bool, weighted: bool) -> None:
        self.bounded = bounded
        self.reference = rows.new_full((rows.shape[0],), 0.0 if bounded else -torch.inf)
        self.total = rows.new_zeros(rows.shape[0])
        self.weighted = torch.zeros_like(rows) if weighted else None

    def merge_tile(self, block: slice, logits: Tensor, entries: Tensor) -> None:
        """Merge in one tile: `logits` (R, T), overwritten, of the anchors `block` with `entries`.

        Entries that do not count have a logit of −∞.
        """
        if not self.bounded:
            self._raise_reference(block, logits.amax(dim=1))
            logits.sub_(finite(self.reference[block])[:, None])
        likelihoods = logits.exp_()
        # A sum by a product reads the tile faster than a sum does.
        self.total[block].addmv_(likelihoods, likelihoods.new_ones(likelihoods.shape[1]))
        if self.weighted is not None:
            self.weighted[block].addmm_(likelihoods, entries)

    def merge(self, block: slice, log_sum: Tensor, mean: Tensor) -> None:
        """Merge in Z (R,) and o (R, D) of the anchors `block` over some more entries."""
        if not self.bounded:
            self._raise_reference(block, log_sum)
            log_sum = log_sum - finite(self.reference[block])
        share = log_sum.exp()
        self.total[block] += share
        if self.weighted is not None:
            self.weighted[block].addcmul_(mean, share[:, None])

    def merge_halves(self) -> None:
        """Where the anchors stand twice over: merge the second half of the rows into the first."""
        num_anchors = self.total.shape[0] // 2
        first, second = slice(0, num_anchors), slice(num_anchors, 2 * num_anchors)
        if not self.bounded:
            maximum = torch.maximum(self.reference[first], self.reference[second])
            self._raise_reference(first, maximum)
            self._raise_reference(second, maximum)
        self.reference = self.reference[first]
        self.total = self.total[first] + self.total[second]
        if self.weighted is not None:
            self.weighted = self.weighted[first].add_(self.weighted[second])

    def _raise_reference(self, block: slice, maximum: Tensor) -> None:
        raised = torch.maximum(self.reference[block], maximum)
        scale = torch.exp(self.reference[block] - finite(raised))
        self.reference[block] = raised
        self.total[block] *= scale
        if self.weighted is not None:
            self.weighted[block] *= scale[:, None]

    def log_sum(self) -> Tensor:
        """(m,) Z; −∞ for an anchor that has seen no entry."""
        return finite(self.reference) + self.total.log()

    def mean(self) -> Tensor:
        """(m, D) o = Σ softmax(s)·k; zeros for an anchor that has seen no entry."""
        assert self.weighted is not None
        return self.weighted / torch.where(self.total > 0, self.total, 1.0)[:, None]


def finite(reference: Tensor) -> Tensor:
    """exp(−∞ − −∞) is NaN: an empty row is kept relative to 0, where exp(−∞) is 0."""
    return torch.where(reference == -torch.inf, 0.0, reference)
