"""From the loss of each anchor to the loss that is returned; the same for every backend."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather
from pixcontrast._dtypes import widest_float

Reduction = Literal["mean", "sum", "none"]


def reduce_losses(
    losses: Tensor,
    has_positive: Tensor,
    weight: Tensor | None,
    reduction: Reduction,
    ranks: Ranks | None = None,
) -> Tensor:
    """Weigh (M,) losses, which are 0 where an anchor has no positive, and reduce them.

    Over several ranks, what comes back is this rank's: the mean over ranks of it, and of its
    gradient, is the reduction of all anchors of all ranks.
    """
    largest = losses.new_ones(())
    if weight is None:
        weights = has_positive.to(losses.dtype)
        counted = losses
    else:
        weight = torch.where(has_positive, weight.detach().clamp(min=0), 0)
        if reduction == "mean" and weight.numel():
            # A mean knows no scale, and sums of weights near 1 neither overflow nor vanish.
            # Made in the wider dtype of the two: each rank divides by a number of its own.
            weight = weight.to(torch.promote_types(weight.dtype, losses.dtype))
            largest = weight.amax()
            weight = weight / torch.where(largest > 0, largest, 1)
        weights = weight.to(losses.dtype)
        # A weight of 0 takes the anchor out, also one whose loss has overflowed.
        counted = torch.where(weights > 0, weights * losses, 0.0)
    if reduction == "none":
        return counted
    if reduction == "sum":
        return counted.sum() if ranks is None else ranks.size * counted.sum()
    total = weights.sum()
    if ranks is not None:
        total = _average_total(total, largest, ranks).to(losses.dtype)
    return counted.sum() / torch.where(total > 0, total, 1.0)


def _average_total(total: Tensor, largest: Tensor, ranks: Ranks) -> Tensor:
    """() Σ over ranks of their total weights, by W, in units of this rank's largest weight."""
    own = torch.stack([total, largest]).to(widest_float(total.device))
    (of_all,) = gather(ranks, [own])
    totals, scales = of_all.unbind(dim=1)
    unit = own[1]
    return (totals * (scales / torch.where(unit > 0, unit, 1.0))).sum() / ranks.size
