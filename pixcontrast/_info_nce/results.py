"""The result of a form of the equation, and partial results that merge to it.

The loss of a positive needs Z over every contrast entry, so there are two passes. Each pass may run
over subsets of the entries: tiles, contrast tensors, or the shard of each rank. The partial results
of the first pass merge to Z by online softmax; those of the second pass, computed with that Z,
merge to the loss. Any split of the entries merges to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import Problem


class AnchorStatistics(NamedTuple):
    """Statistics of the complete rows of similarities of R anchors, from which ∂L/∂s is computed.

    Each has shape (R, 1).

    Attributes:
        lse: Z_i, the log-sum-exp over the denominator; −∞ if the denominator is empty.
        weight: w_i for `"negatives"`, 1 for `"all"`; 0 for an anchor without a positive.
        inv_num_positives: 1/|P_i|; 0 for an anchor without a positive.
    """

    lse: Tensor
    weight: Tensor
    inv_num_positives: Tensor

    def of(self, rows: slice | Tensor) -> AnchorStatistics:
        """Return the statistics of some rows."""
        return AnchorStatistics(*(column[rows] for column in self))


class ForwardResult(NamedTuple):
    """The result of the forward, in the caller's order of anchors.

    Attributes:
        losses: (M,) loss of each anchor; 0 without a positive.
        has_positive: (M,) bool.
        anchor_gradient: (M, D) ∂L_i/∂a_i with the contrast entries held fixed, or None if no
            gradient is requested. In the fused form, anchors as contrast entries do not contribute
            to it; the backward adds their part.
        statistics: input of the gradient of the entries.
    """

    losses: Tensor
    has_positive: Tensor
    anchor_gradient: Tensor | None
    statistics: AnchorStatistics


class DenominatorPartial(NamedTuple):
    """Z (M,) and o = Σ exp(s − Z)·k (M, D) over a subset of the entries.

    Z is −∞ for an anchor without an entry in the subset; o is None if no gradient is requested.
    """

    lse: Tensor
    negative_mean: Tensor | None


class PositivesPartial(NamedTuple):
    """Number of positives in a subset of the entries, and means over them; 0 without a positive.

    For `"negatives"` the means of softplus(Z − s), σ(Z − s) and σ(Z − s)·k; for `"all"` the means
    of s and k, and 0 for `weight`. `positive_grad` (M, D) is None if no gradient is requested.
    """

    num_positives: Tensor
    losses: Tensor
    weight: Tensor
    positive_grad: Tensor | None


class Losses(NamedTuple):
    """The losses (M,) and has_positive (M,) of `ForwardResult`.

    `num_shard_entries` is the number of entries in the shards of all ranks, () int64.
    """

    losses: Tensor
    has_positive: Tensor
    num_shard_entries: Tensor | None = None


class Passes(Protocol):
    """A form of the equation as two passes over the contrast entries of a problem."""

    def denominator(self) -> DenominatorPartial:
        """Compute Z and o."""

    def positives(self, lse: Tensor) -> PositivesPartial:
        """Compute the means over the positives, given Z (M,) over all contrast entries."""


def allocate_forward(
    problem: Problem, allocate: Callable[..., Tensor] = Tensor.new_zeros
) -> ForwardResult:
    """Return the result for M ignored anchors, zeros everywhere, or memory for another result."""
    anchors, num_anchors, dtype = problem.anchors, problem.labels.shape[0], problem.compute_dtype
    gradient = None
    if problem.has_forward_gradient:
        gradient = allocate(anchors, anchors.shape, dtype=dtype)
    return ForwardResult(
        losses=allocate(anchors, num_anchors, dtype=dtype),
        has_positive=allocate(anchors, num_anchors, dtype=torch.bool),
        anchor_gradient=gradient,
        statistics=AnchorStatistics(
            *(allocate(anchors, (num_anchors, 1), dtype=dtype) for _ in AnchorStatistics._fields)
        ),
    )


def allocate_entries_gradient(problem: Problem, wanted: list[bool]) -> list[Tensor | None]:
    """Return zeros of each requested contrast tensor's shape, None for the others."""
    return [
        contrast.entries.new_zeros(contrast.entries.shape, dtype=problem.entries_gradient_dtype)
        if want
        else None
        for contrast, want in zip(problem.contrast, wanted, strict=True)
    ]


class OnlineSoftmax:
    """Running reference r, Σ exp(s − r) and, if `weighted`, Σ exp(s − r)·k of every anchor.

    If all similarities are so small that exp can neither overflow nor underflow (`bounded`), the
    reference is 0, which saves two passes over every tile. Otherwise it is the running maximum.
    `rows` (m, D) has one row for each anchor; only its shape, dtype and device are used.
    """

    def __init__(self, rows: Tensor, *, bounded: bool, weighted: bool) -> None:
        self._bounded = bounded
        self._reference = rows.new_full((rows.shape[0],), 0.0 if bounded else -torch.inf)
        self._total = rows.new_zeros(rows.shape[0])
        self._weighted = torch.zeros_like(rows) if weighted else None

    def add_tile(self, block: slice, logits: Tensor, entries: Tensor) -> None:
        """Add a tile of similarities (R, T), which is overwritten; −∞ leaves an entry out."""
        if not self._bounded:
            self._increase_reference(block, logits.amax(dim=1))
            logits.sub_(finite(self._reference[block])[:, None])
        likelihoods = logits.exp_()
        # A product with ones reads the tile faster than sum does.
        self._total[block].addmv_(likelihoods, likelihoods.new_ones(likelihoods.shape[1]))
        if self._weighted is not None:
            self._weighted[block].addmm_(likelihoods, entries)

    def add_partial(self, block: slice, lse: Tensor, mean: Tensor) -> None:
        """Add Z (R,) and o (R, D) of the anchors `block` over further entries."""
        if not self._bounded:
            self._increase_reference(block, lse)
            lse = lse - finite(self._reference[block])
        total = lse.exp()
        self._total[block] += total
        if self._weighted is not None:
            self._weighted[block].addcmul_(mean, total[:, None])

    def _increase_reference(self, block: slice, maximum: Tensor) -> None:
        reference = torch.maximum(self._reference[block], maximum)
        scale = torch.exp(self._reference[block] - finite(reference))
        self._reference[block] = reference
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


def finite(reference: Tensor) -> Tensor:
    """Replace −∞ by 0, because exp(−∞ − −∞) is NaN and exp(−∞ − 0) is 0."""
    return torch.where(reference == -torch.inf, 0.0, reference)
