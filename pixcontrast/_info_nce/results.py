"""What a form of the equation returns, and the partial results that its two passes return.

The loss of a positive needs Z over every contrast entry, so there are two passes. Each pass may run
over subsets of the contrast entries, for example the shard of each rank. The partial results of
the first pass merge to Z; those of the second pass, computed with that Z, merge to the loss.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import Problem


class AnchorStatistics(NamedTuple):
    """What ∂L/∂s needs to know of an anchor's complete row of similarities, (R, 1) each.

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
            gradient is requested. The fused form leaves out the anchors' gradient through
            themselves.
        statistics: what the gradient of the entries needs.
    """

    losses: Tensor
    has_positive: Tensor
    anchor_gradient: Tensor | None
    statistics: AnchorStatistics


class DenominatorPartial(NamedTuple):
    """Z (M,), −∞ for an anchor without an entry, and o = Σ exp(s − Z)·k (M, D) over a subset.

    o is None if no gradient is requested.
    """

    lse: Tensor
    negative_mean: Tensor | None


class PositivesPartial(NamedTuple):
    """Their number (M,) and means over a subset of the positives; 0 without a positive in it.

    For `"negatives"` the means of softplus(Z − s), σ(Z − s) and σ(Z − s)·k; for `"all"` the means
    of s and k, and 0 for `weight`. `positive_grad` (M, D) is None if no gradient is requested.
    """

    num_positives: Tensor
    losses: Tensor
    weight: Tensor
    positive_grad: Tensor | None


class Losses(NamedTuple):
    """What a form computes: losses (M,) and has_positive (M,), as in `ForwardResult`.

    `num_shard_entries` is the number of entries in the shards of all ranks, () int64.
    """

    losses: Tensor
    has_positive: Tensor
    num_shard_entries: Tensor | None = None


class Passes(Protocol):
    """A form of the equation as two passes over the contrast entries of a problem."""

    def denominator(self, *, want_gradient: bool) -> DenominatorPartial:
        """Compute Z and o."""

    def positives(self, lse: Tensor, *, want_gradient: bool) -> PositivesPartial:
        """Compute the means over the positives, given Z (M,) over all contrast entries."""


def allocate_forward(problem: Problem, *, want_gradient: bool) -> ForwardResult:
    """Return the result for M ignored anchors: zeros everywhere."""
    like = problem.anchors.new_zeros(0, dtype=problem.compute_dtype)
    num_anchors = problem.labels.numel()
    return ForwardResult(
        losses=like.new_zeros(num_anchors),
        has_positive=like.new_zeros(num_anchors, dtype=torch.bool),
        anchor_gradient=like.new_zeros(problem.anchors.shape) if want_gradient else None,
        statistics=AnchorStatistics(*(like.new_zeros(num_anchors, 1) for _ in range(3))),
    )


def allocate_entries_gradient(problem: Problem, wanted: list[bool]) -> list[Tensor | None]:
    """Return zeros of each requested contrast tensor's shape, None for the others."""
    return [
        contrast.entries.new_zeros(contrast.entries.shape, dtype=problem.compute_dtype)
        if want
        else None
        for contrast, want in zip(problem.contrast, wanted, strict=True)
    ]
