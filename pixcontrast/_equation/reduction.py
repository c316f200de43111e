"""From the loss of each anchor to the loss that is returned; the same for every backend."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def reduce_losses(
    losses: Tensor, has_positive: Tensor, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    """Weigh (M,) losses, which are 0 where an anchor has no positive, and reduce them."""
    if weight is None:
        weights = has_positive.to(losses.dtype)
        counted = losses
    else:
        weight = torch.where(has_positive, weight.detach().clamp(min=0), 0)
        if reduction == "mean" and weight.numel():
            # A mean knows no scale, and sums of weights near 1 neither overflow nor vanish.
            largest = weight.amax()
            weight = weight / torch.where(largest > 0, largest, 1)
        weights = weight.to(losses.dtype)
        # A weight of 0 takes the anchor out, also one whose loss has overflowed.
        counted = torch.where(weights > 0, weights * losses, 0.0)
    if reduction == "none":
        return counted
    if reduction == "sum":
        return counted.sum()
    total = weights.sum()
    return counted.sum() / torch.where(total > 0, total, 1.0)
