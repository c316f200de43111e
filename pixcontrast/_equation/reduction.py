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
        counted, weights = losses, has_positive.to(losses.dtype)
    else:
        weights = torch.where(has_positive, weight.detach().to(losses.dtype), 0.0)
        # A weight of 0 takes the anchor out, also one whose loss has overflowed.
        counted = torch.where(weights > 0, weights * losses, 0.0)
    if reduction == "none":
        return counted
    if reduction == "sum":
        return counted.sum()
    total = weights.sum()
    return counted.sum() / torch.where(total > 0, total, 1.0)
