"""What complete rows of similarities select, by masks: on any device, whatever the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import mining
from pixcontrast._equation.coefficients import AnchorStatistics, coefficients, pulls
from pixcontrast._equation.parts import share_of
from pixcontrast._equation.problem import Problem
from pixcontrast._equation.stripes import Stripes
from pixcontrast.mining import Thresholds


class MinedRows(NamedTuple):
    """R anchors under mining.

    Attributes:
        losses: (R, 1) 0 without a positive.
        statistics: of the selected entries.
        thresholds: what an entry had to meet.
        gradient: (R, D) ∂L_i/∂a_i with the entries held fixed, or None where none is wanted.
    """

    losses: Tensor
    statistics: AnchorStatistics
    thresholds: Thresholds
    gradient: Tensor | None


def masked_rows(
    stripes: Stripes, block: slice, logits: Tensor, problem: Problem, *, want_gradient: bool
) -> MinedRows:
    """What the (R, N) similarities of a block select."""
    logits, positive, negative, keys = stripes.part(logits, block)
    assert problem.mining is not None
    found = problem.mining.thresholds(logits, positive, negative, keys)
    positive, negative = mining.keep(found, logits, positive, negative, keys)
    losses, statistics = _losses(logits, positive, negative, problem)
    gradient = None
    if want_gradient:
        change = coefficients(logits, positive, negative, statistics, problem.denominator)
        gradient = stripes.weigh_all(change)
    return MinedRows(losses, statistics, found, gradient)


def _losses(
    logits: Tensor, positive: Tensor, negative: Tensor, problem: Problem
) -> tuple[Tensor, AnchorStatistics]:
    num_positives = positive.sum(dim=1, keepdim=True)
    share = share_of(num_positives, logits.dtype)
    if problem.denominator == "negatives":
        log_sum = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
        terms, strength = pulls((log_sum - logits).masked_fill_(~positive, -torch.inf))
        losses = terms.mul_(share).sum(dim=1, keepdim=True)
        weight = strength.mul_(share).sum(dim=1, keepdim=True)
    else:
        counted = positive | negative
        log_sum = logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1, keepdim=True)
        mean = logits.masked_fill(~positive, 0.0).mul_(share).sum(dim=1, keepdim=True)
        losses = torch.where(share > 0, log_sum - mean, 0.0)
        weight = (share > 0).to(logits.dtype)
    return losses, AnchorStatistics(log_sum, weight, share)
