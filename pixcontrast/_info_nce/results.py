"""The equation in parts: what some of the entries say of each anchor, and how parts are merged.

Any split of the contrast entries will do, such as one over ranks. There are two rounds, since the
loss of a positive needs Z over everything: parts of the denominator merge to Z and o, and parts of
the positives, made under that Z, merge to the loss and the rest of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import AnchorStatistics
from pixcontrast._info_nce.merge import Partial
from pixcontrast._info_nce.problem import Problem


class Forward(NamedTuple):
    """What the forward leaves, per anchor and in the caller's order.

    Attributes:
        losses: (M,) 0 without a positive.
        has_positive: (M,) bool.
        gradient: (M, D) ∂L_i/∂a_i with the entries held fixed, or None where none is wanted.
        statistics: what `entries_gradient` needs.
    """

    losses: Tensor
    has_positive: Tensor
    gradient: Tensor | None
    statistics: AnchorStatistics


class DenominatorPart(NamedTuple):
    """Z and o over some entries.

    Attributes:
        log_sum: (M,) Z, −∞ for an anchor that has seen no entry.
        mean: (M, D) Σ exp(s − Z)·k, or None where no gradient is wanted.
    """

    log_sum: Tensor
    mean: Tensor | None


class PositivesPart(NamedTuple):
    """Means over some positives; zeros for an anchor that has none among them.

    For `"negatives"`, of softplus(Z − s), σ(Z − s) and σ(Z − s)·k; for `"all"`, of s, 0 and k.

    Attributes:
        number: (M,) int64, how many positives.
        losses: (M,).
        weight: (M,).
        pull: (M, D), or None where no gradient is wanted.
    """

    number: Tensor
    losses: Tensor
    weight: Tensor
    pull: Tensor | None


class Passes(Protocol):
    """A form of the equation, as two passes over the pieces of a problem."""

    def denominator(self, *, want_gradient: bool) -> DenominatorPart: ...

    def positives(self, log_sum: Tensor, *, want_gradient: bool) -> PositivesPart: ...


def merge_denominators(parts: Sequence[DenominatorPart]) -> DenominatorPart:
    """Z and o over the entries of all parts, merged in their order."""
    first = parts[0].mean
    weighted = first is not None
    rows = parts[0].log_sum[:, None] if first is None else first
    merged = Partial(rows, bounded=False, weighted=weighted)
    everyone = slice(0, len(rows))
    for log_sum, mean in parts:
        merged.merge(everyone, log_sum, rows if mean is None else mean)
    return DenominatorPart(merged.log_sum(), merged.mean() if weighted else None)


def merge_positives(parts: Sequence[PositivesPart]) -> PositivesPart:
    """Means over the positives of all parts, merged in their order."""
    number = torch.stack([part.number for part in parts]).sum(dim=0)
    losses, weight = torch.zeros_like(parts[0].losses), torch.zeros_like(parts[0].weight)
    pull = None if parts[0].pull is None else torch.zeros_like(parts[0].pull)
    for part in parts:
        # A share of a mean, not a sum: the sum of many finite terms could overflow.
        share = part.number.to(losses.dtype) / number.clamp(min=1)
        losses.addcmul_(part.losses, share)
        weight.addcmul_(part.weight, share)
        if pull is not None and part.pull is not None:
            pull.addcmul_(part.pull, share[:, None])
    return PositivesPart(number, losses, weight, pull)


def complete(problem: Problem, denominator: DenominatorPart, positives: PositivesPart) -> Forward:
    """Losses and gradient of anchors whose every entry is in both parts, which are overwritten."""
    log_sum, mean = denominator
    number, losses, weight, pull = positives
    has_positive = number > 0
    share = share_of(number, problem.compute_dtype)
    if problem.denominator == "all":
        # Not where there is no positive: Z is −∞ for an anchor that has nothing beside it.
        losses = torch.where(has_positive, log_sum - losses, 0.0)
        weight = has_positive.to(losses.dtype)
    gradient = None
    if mean is not None and pull is not None:
        gradient = mean.mul_(weight[:, None]).sub_(pull).mul_(problem.inverse_temperature)
    statistics = AnchorStatistics(log_sum[:, None], weight[:, None], share[:, None])
    return Forward(losses, has_positive, gradient, statistics)


def share_of(num_positives: Tensor, dtype: torch.dtype) -> Tensor:
    """1/|P_i|, 0 without a positive."""
    share = num_positives.clamp(min=1).to(dtype).reciprocal()
    return torch.where(num_positives > 0, share, 0.0)
