"""What complete rows of similarities select, by masks: on any device, whatever the labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import mining
from pixcontrast._info_nce.derivative import AnchorStatistics, coefficients, pulls
from pixcontrast._info_nce.mined.row_blocks import Stripes
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import share_of
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
    counted = negative if problem.denominator == "negatives" else positive | negative
    log_sum = log_sum_of(logits, counted)
    losses, weight, share, _ = positives_of(logits, positive, log_sum, problem)
    if problem.denominator == "all":
        losses = torch.where(share > 0, log_sum - losses, 0.0)
        weight = (share > 0).to(logits.dtype)
    return losses, AnchorStatistics(log_sum, weight, share)


def log_sum_of(logits: Tensor, counted: Tensor) -> Tensor:
    """(R, 1) Z over the entries that count; −∞ over none."""
    return logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1, keepdim=True)


class PositiveMeans(NamedTuple):
    """Means over the positives of R anchors, as in `PositivesPart`: (R, 1) each.

    Attributes:
        losses, weight: the means.
        share: 1/|P_i|, 0 without a positive.
        strength: (R, N) what each entry is weighed with in the mean of the entries.
    """

    losses: Tensor
    weight: Tensor
    share: Tensor
    strength: Tensor


def positives_of(
    logits: Tensor, positive: Tensor, log_sum: Tensor, problem: Problem
) -> PositiveMeans:
    share = share_of(positive.sum(dim=1, keepdim=True), logits.dtype)
    if problem.denominator == "negatives":
        terms, strength = pulls((log_sum - logits).masked_fill_(~positive, -torch.inf))
        losses = terms.mul_(share).sum(dim=1, keepdim=True)
        weight = strength.mul_(share).sum(dim=1, keepdim=True)
    else:
        strength = positive * share
        losses = logits.masked_fill(~positive, 0.0).mul_(share).sum(dim=1, keepdim=True)
        weight = torch.zeros_like(losses)
    return PositiveMeans(losses, weight, share, strength)
