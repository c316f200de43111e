"""Selection and loss of complete rows of similarities by masks: any device, any labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import (
    Masks,
    complete,
    derivative_,
    inverse_or_zero,
    positive_terms,
)
from pixcontrast._info_nce.mined.row_blocks import MaskedRows, RowBlocks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import DenominatorPartial, ForwardResult, PositivesPartial
from pixcontrast._info_nce.thresholds import Thresholds, thresholds_of_rows


def masked_rows(
    blocks: RowBlocks, part: MaskedRows, problem: Problem, *, want_gradient: bool
) -> tuple[ForwardResult, Thresholds]:
    """Return the result and the thresholds of R anchors. Their similarities are overwritten."""
    assert problem.negative_sampler is not None
    thresholds = thresholds_of_rows(problem.negative_sampler, part.logits, part.masks, part.keys)
    masks = part.select(thresholds)
    lse = lse_of(part.logits, masks, problem)
    positives, _ = positives_of(part.logits, masks.positive, lse, problem)
    result = complete(problem, DenominatorPartial(lse, None), positives)
    if want_gradient:
        change = derivative_(part.logits, masks, result.statistics, problem.denominator)
        gradient = blocks.weighted_sum(change).mul_(problem.inverse_temperature)
        result = result._replace(anchor_gradient=gradient)
    return result, thresholds


def lse_of(logits: Tensor, masks: Masks, problem: Problem) -> Tensor:
    """Return Z (R,) of the similarities (R, T); −∞ for an empty denominator."""
    outside = ~masks.in_denominator(problem.denominator)
    return logits.masked_fill(outside, -torch.inf).logsumexp(dim=1)


def positives_of(
    logits: Tensor, positive: Tensor, lse: Tensor, problem: Problem
) -> tuple[PositivesPartial, Tensor]:
    """Return the means over the positives of R anchors, and the weights (R, T) of the mean of k."""
    num_positives = positive.sum(dim=1)
    inv_num_positives = inverse_or_zero(num_positives, logits.dtype)[:, None]
    terms, strength = positive_terms(logits, lse[:, None], problem.denominator)
    # Divide each term, because the sum of many finite terms could overflow.
    losses = terms.masked_fill(~positive, 0.0).mul_(inv_num_positives).sum(dim=1)
    if strength is None:
        weights, weight = positive * inv_num_positives, torch.zeros_like(losses)
    else:
        weights = strength.masked_fill_(~positive, 0.0).mul_(inv_num_positives)
        weight = weights.sum(dim=1)
    return PositivesPartial(num_positives, losses, weight, None), weights
