"""The equation for one tile of similarities: its terms, its derivative ∂L/∂s, and its completion.

With σ the logistic function and w_i = 1/|P_i| Σ_p σ(Z_i − s_ip):

    denominator="negatives"   ∂L_i/∂s_in = w_i · exp(s_in − Z_i)
                              ∂L_i/∂s_ip = −σ(Z_i − s_ip) / |P_i|
    denominator="all"         ∂L_i/∂s_ij = exp(s_ij − Z_i) − [j ∈ P_i] / |P_i|

All forms share these functions, except `dense`, which is differentiated by autograd, and the
kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.problem import Denominator, Problem
from pixcontrast._info_nce.results import (
    AnchorStatistics,
    DenominatorPartial,
    ForwardResult,
    PositivesPartial,
    finite,
)


class Masks(NamedTuple):
    """Which contrast entries are positives and negatives of which anchors, (R, T) bool each."""

    positive: Tensor
    negative: Tensor

    def in_denominator(self, denominator: Denominator) -> Tensor:
        """Return the entries that Z sums over."""
        return self.negative if denominator == "negatives" else self.positive | self.negative


def derivative_(
    logits: Tensor,
    masks: Masks | None,
    statistics: AnchorStatistics,
    denominator: Denominator,
) -> Tensor:
    """Overwrite the similarities (R, T) of a tile by ∂L/∂s. `masks=None`: all are negatives."""
    lse, weight, inv_num_positives = statistics
    positive_part = None
    if masks is not None:
        if denominator == "negatives":
            positive_part = torch.sigmoid(lse - logits).mul_(inv_num_positives)
        else:
            positive_part = inv_num_positives.expand_as(logits)
        positive_part = positive_part.masked_fill(~masks.positive, 0.0)
    # A likelihood is at most 1. Without the clamp a large similarity that another tile shape rounds
    # differently can make exp overflow, and inf · 0 is NaN.
    likelihood = logits.sub_(finite(lse)).clamp_(max=0.0).exp_().mul_(weight)
    if masks is None or positive_part is None:
        return likelihood
    return likelihood.masked_fill_(~masks.in_denominator(denominator), 0.0).sub_(positive_part)


def positive_terms(
    logits: Tensor, lse: Tensor, factor: Tensor | None, denominator: Denominator
) -> tuple[Tensor, Tensor]:
    """Return f·softplus(Z − s) and f·σ(Z − s) of a tile (R, T), or f·s and f for `"all"`.

    The factor f is a mask of the positives or a mask times 1/|P_i|; None stands for 1.
    """
    if denominator == "all":
        if factor is None:
            return logits, torch.ones_like(logits)
        return logits * factor, factor.to(logits.dtype)
    margin = lse - logits
    # The default threshold of softplus is 20, where the linear function has an error of 1e-9.
    terms, strength = F.softplus(margin, threshold=50.0), margin.sigmoid_()
    return (terms, strength) if factor is None else (terms.mul_(factor), strength.mul_(factor))


def lse_of(logits: Tensor, masks: Masks, denominator: Denominator) -> Tensor:
    """Return Z (R,) of complete rows of similarities (R, T); −∞ for an empty denominator."""
    outside = ~masks.in_denominator(denominator)
    return logits.masked_fill(outside, -torch.inf).logsumexp(dim=1)


def positives_of(
    logits: Tensor, positive: Tensor, lse: Tensor, denominator: Denominator
) -> tuple[PositivesPartial, Tensor]:
    """Return the means over the positives (R, T), and f·σ(Z − s) or f (R, T) of `positive_terms`.

    The factor f is 1/|P_i| for a positive, else 0.
    """
    num_positives = positive.sum(dim=1)
    # Divide each term, because the sum of many finite terms could overflow.
    factor = positive / num_positives.clamp(min=1)[:, None].to(logits.dtype)
    terms, strength = positive_terms(logits, lse[:, None], factor, denominator)
    weight = strength.sum(dim=1) if denominator == "negatives" else torch.zeros_like(lse)
    return PositivesPartial(num_positives, terms.sum(dim=1), weight, None), strength


def losses_and_weight(
    lse: Tensor, positives: PositivesPartial, denominator: Denominator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, whether P_i is not empty, and w from results over all contrast entries, (M,)."""
    num_positives, losses, weight, _ = positives
    has_positive = num_positives > 0
    if denominator == "negatives":
        return losses, has_positive, weight
    # Z is −∞ for an anchor without an entry. Z is at least the mean, so clamp rounding errors.
    losses = torch.where(has_positive, lse - losses, 0.0).clamp(min=0.0)
    return losses, has_positive, has_positive.to(losses.dtype)


def complete(
    problem: Problem, denominator: DenominatorPartial, positives: PositivesPartial
) -> ForwardResult:
    """Compute the losses and the anchors' gradient from the results of both passes.

    These cover all contrast entries and are overwritten.
    """
    lse, negative_mean = denominator
    losses, has_positive, weight = losses_and_weight(lse, positives, problem.denominator)
    gradient = None
    if negative_mean is not None and positives.positive_grad is not None:
        gradient = negative_mean.mul_(weight[:, None]).sub_(positives.positive_grad)
        gradient.mul_(problem.inverse_temperature)
    inv_num_positives = inverse_or_zero(positives.num_positives, problem.compute_dtype)
    statistics = AnchorStatistics(lse[:, None], weight[:, None], inv_num_positives[:, None])
    return ForwardResult(losses, has_positive, gradient, statistics)


def inverse_or_zero(count: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1/count, and 0 where the count is 0."""
    return torch.where(count > 0, count.clamp(min=1).to(dtype).reciprocal(), 0.0)
