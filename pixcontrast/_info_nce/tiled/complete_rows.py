"""Losses and ∂L/∂s of a tile with all similarities of its anchors.

Masks, similarities and their exponentials are computed once. Positives of a large tile are
gathered, because most anchors have few.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import losses_and_weight, positives_of
from pixcontrast._info_nce.problem import Problem

# With more similarities than this, it is faster to gather the positives than to compute their terms
# for every entry, unless an anchor has more positives than `MAX_GATHERED` of the entries.
MAX_UNGATHERED = 1 << 17
MAX_GATHERED = 1 / 3


class Columns(NamedTuple):
    """A contrast tensor in the tile.

    Attributes:
        range: its columns.
        operand: (n, D), the entries as operands.
        is_anchors: whether the entries are the anchors.
    """

    range: slice
    operand: Tensor
    is_anchors: bool


def can_use_ratios(problem: Problem, logits: Tensor, bounded: bool) -> bool:
    """Return whether `losses_by_ratios` supports the problem, and is faster."""
    return bounded and logits.numel() <= MAX_UNGATHERED and problem.denominator == "negatives"


def losses_by_ratios(
    problem: Problem, logits: Tensor, labels: Tensor, parts: list[Columns], *, want_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return L, whether P_i is not empty, (M,), and ∂L/∂s (M, N) for denominator="negatives".

    With the ratio r = Σ_n exp(s_n) / exp(s_p) = exp(Z − s_p), softplus(Z − s_p) is log(1 + r) and
    σ(Z − s_p) is r/(1 + r), which takes half of the time of the general functions.

    Args:
        logits: (M, N) similarities in base 2, within `BOUNDED_LOGIT`. Overwritten.
    """
    positive = _same_class(problem.labels, labels, logits)
    exponentials = logits.exp2_()
    likelihood = torch.addcmul(exponentials, exponentials, positive, value=-1.0)
    sums = likelihood.sum(dim=1, keepdim=True)
    _exclude_self(positive, parts, 0.0)
    num_positives = positive.sum(dim=1)
    has_positive = num_positives > 0
    count = num_positives.clamp_(min=1.0)
    ratio = torch.div(sums, exponentials, out=exponentials).mul_(positive)
    losses = ratio.log1p().sum(dim=1).div_(count)
    if not want_gradient:
        return losses, has_positive, None
    strength = ratio.div_(ratio + 1.0)
    weight = strength.sum(dim=1).div_(count)
    # Without negatives, the sum and the weight are 0.
    factor = weight[:, None].div_(sums.clamp_(min=torch.finfo(sums.dtype).tiny))
    grad_logits = likelihood.mul_(factor).addcdiv_(strength, count[:, None], value=-1.0)
    return losses, has_positive, grad_logits


def losses_by_softmax(
    problem: Problem,
    logits: Tensor,
    labels: Tensor,
    parts: list[Columns],
    *,
    bounded: bool,
    want_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return L, whether P_i is not empty, (M,), and ∂L/∂s (M, N).

    Args:
        logits: (M, N) similarities. May be overwritten.
        bounded: whether they are within `BOUNDED_LOGIT`.
        want_gradient: whether ∂L/∂s is computed; it is None otherwise.
    """
    gathered = None
    if logits.numel() > MAX_UNGATHERED:
        gathered = _gather(problem.labels, labels, parts)
    if gathered is None:
        positive_logits = logits
        masked_logits, positive = _mask(problem, logits, torch.empty_like(logits), labels, parts)
    else:
        indices, positive = gathered
        positive_logits = logits.gather(1, indices)
        masked_logits, _ = _mask(problem, logits, logits, labels, parts)
    likelihood, lse = _softmax(masked_logits, bounded=bounded)
    means, strength = positives_of(positive_logits, positive, lse, problem.denominator)
    losses, has_positive, weight = losses_and_weight(lse, means, problem.denominator)
    if not want_gradient:
        return losses, has_positive, None
    # ∂L/∂s as in `derivative_`: w·exp(s − Z) − f·σ(Z − s).
    grad_logits = likelihood.mul_(weight[:, None])
    if gathered is None:
        grad_logits.sub_(strength)
    else:
        grad_logits.scatter_add_(1, indices, strength.neg_())
    return losses, has_positive, grad_logits


def _softmax(masked_logits: Tensor, *, bounded: bool) -> tuple[Tensor, Tensor]:
    """Return exp(s − Z) (M, N) and Z (M,) of the result of `_mask`, which is overwritten."""
    if bounded:
        likelihood = masked_logits.exp_()
        sums = likelihood.sum(dim=1)
        # An empty denominator has no exponential above 0.
        inverse = sums.clamp(min=torch.finfo(sums.dtype).tiny).reciprocal_()
        return likelihood.mul_(inverse[:, None]), sums.log_()
    likelihood = masked_logits.softmax(dim=1)
    return likelihood, masked_logits.amax(dim=1) - likelihood.amax(dim=1).log_()


def _mask(
    problem: Problem, logits: Tensor, out: Tensor, labels: Tensor, parts: list[Columns]
) -> tuple[Tensor, Tensor]:
    """Return the similarities, very low outside the denominator, and the mask of the positives.

    Both are (M, N). The similarities are written to `out`, which may be `logits`. The mask is 0
    and 1 in the same dtype, because adding it is faster than `where`. The low value is finite: the
    softmax of a row of −∞ would be NaN.
    """
    # Similarities are within a quarter of the largest number, so the sum is finite.
    lowest = -0.75 * torch.finfo(logits.dtype).max
    positive = _same_class(problem.labels, labels, logits)
    excludes_positives = problem.denominator == "negatives"
    torch.add(logits, positive, alpha=lowest if excludes_positives else 0.0, out=out)
    _exclude_self(positive, parts, 0.0)
    if not excludes_positives:
        _exclude_self(out, parts, lowest)
    return out, positive


def _same_class(anchor_labels: Tensor, labels: Tensor, like: Tensor) -> Tensor:
    """Return whether an anchor and an entry have the same label, as 1 and 0 in a dtype."""
    return torch.eq(anchor_labels[:, None], labels, out=torch.empty_like(like))


def _exclude_self(tile: Tensor, parts: list[Columns], value: float) -> None:
    """Set what belongs to an anchor and itself, in place."""
    for part in parts:
        if part.is_anchors:
            tile[:, part.range].fill_diagonal_(value)


def _gather(
    anchor_labels: Tensor, labels: Tensor, parts: list[Columns]
) -> tuple[Tensor, Tensor] | None:
    """Return columns (M, P) with all positives, and which are positives; None if P is large."""
    ascending, order = labels.sort(stable=True)
    first = torch.searchsorted(ascending, anchor_labels)
    count = torch.searchsorted(ascending, anchor_labels, right=True).sub_(first)
    max_count = int(count.amax())
    if max_count > MAX_GATHERED * len(labels):
        return None
    offsets = torch.arange(max_count, device=labels.device)
    columns = order[(first[:, None] + offsets).clamp_(max=len(order) - 1)]
    positive = offsets < count[:, None]
    for part in parts:
        if part.is_anchors:
            own = torch.arange(part.range.start, part.range.stop, device=labels.device)
            positive &= columns != own[:, None]
    return columns, positive
