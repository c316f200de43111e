"""Reduce the losses of the anchors to the returned loss, in the same way for every backend."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather
from pixcontrast._tensors import widest_float

Reduction = Literal["mean", "sum", "none"]


def reduce_losses(
    losses: Tensor,
    has_positive: Tensor,
    weight: Tensor | None,
    reduction: Reduction,
    ranks: Ranks | None = None,
) -> Tensor:
    """Apply weights to the losses and reduce them.

    Args:
        losses (Tensor): (M,) loss of each anchor, 0 without a positive.
        has_positive (Tensor): (M,) bool.
        weight (Tensor, optional): (M,) weights of at least 0. None: all weights are 1.
        reduction (str): `"mean"`, `"sum"` or `"none"`.
        ranks (Ranks, optional): the ranks whose anchors the reduction covers. The mean over ranks
            of the result, and of its gradient, is then the reduction over the anchors of all
            ranks. Default: None, this process alone.

    Returns:
        The loss, () or, with `"none"`, (M,).
    """
    if weight is None and reduction == "mean" and ranks is None:
        return losses.sum() / has_positive.sum().clamp(min=1)
    largest = losses.new_ones(())
    if weight is None:
        weights = has_positive.to(losses.dtype)
        weighted = losses
    else:
        weight = torch.where(has_positive, weight.detach().clamp(min=0), 0)
        if reduction == "mean" and weight.numel():
            # The mean does not depend on the scale of the weights. Scale the largest to 1, so that
            # their sum neither overflows nor underflows. Each rank has a scale of its own, so use
            # the wider of the two dtypes to keep rounding errors small.
            weight = weight.to(torch.promote_types(weight.dtype, losses.dtype))
            largest = weight.amax()
            weight = weight / torch.where(largest > 0, largest, 1)
        weights = weight.to(losses.dtype)
        # A weight of 0 excludes the anchor, even if its loss has overflowed.
        weighted = torch.where(weights > 0, weights * losses, 0.0)
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum() if ranks is None else ranks.size * weighted.sum()
    total = weights.sum()
    if ranks is not None:
        total = _average_total(total, largest, ranks).to(losses.dtype)
    return weighted.sum() / torch.where(total > 0, total, 1.0)


def _average_total(total: Tensor, largest: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean over ranks of their total weights, divided by this rank's largest weight."""
    own = torch.stack([total, largest]).to(widest_float(total.device))
    (of_all,) = gather(ranks, [own])
    totals, scales = of_all.unbind(dim=1)
    unit = own[1]
    return (totals * (scales / torch.where(unit > 0, unit, 1.0))).sum() / ranks.size
