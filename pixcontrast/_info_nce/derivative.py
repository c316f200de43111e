"""∂L/∂s, the derivative of an anchor's loss by its similarities, for any tile of them.

With σ the logistic function and w_i = 1/|P_i| Σ_p σ(Z_i − s_ip):

    denominator="negatives"   ∂L_i/∂s_in = w_i · exp(s_in − Z_i)
                              ∂L_i/∂s_ip = −σ(Z_i − s_ip) / |P_i|
    denominator="all"         ∂L_i/∂s_ij = exp(s_ij − Z_i) − [j ∈ P_i] / |P_i|
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.problem import Denominator


class AnchorStatistics(NamedTuple):
    """What the derivative needs of each anchor's whole row: (R, 1) each.

    Attributes:
        log_sum: Z_i, −∞ without an entry in it.
        weight: w_i for `"negatives"`; 1 for `"all"`; 0 for an anchor without a positive.
        share: 1/|P_i|, 0 for an anchor without a positive.
    """

    log_sum: Tensor
    weight: Tensor
    share: Tensor

    def of(self, block: slice | Tensor) -> AnchorStatistics:
        return AnchorStatistics(*(column[block] for column in self))

    def put(self, block: slice | Tensor, values: AnchorStatistics) -> None:
        for column, value in zip(self, values, strict=True):
            column[block] = value


def coefficients(
    logits: Tensor,
    positive: Tensor | None,
    negative: Tensor | None,
    statistics: AnchorStatistics,
    denominator: Denominator,
) -> Tensor:
    """(R, T) ∂L/∂s of a tile. Without masks every entry of the tile is a negative."""
    log_sum, weight, share = statistics
    # No likelihood is above 1. Of similarities whose last digit is worth more than the range of
    # exp, made anew in another tile, the exponential might overflow, and inf · 0 is NaN.
    pushed = (logits - log_sum).clamp_(max=0.0).exp_().mul_(weight)
    if positive is None or negative is None:
        return pushed
    if denominator == "negatives":
        pushed.masked_fill_(~negative, 0.0)
        pulled = torch.sigmoid(log_sum - logits).mul_(share)
    else:
        pushed.masked_fill_(~(negative | positive), 0.0)
        pulled = share.expand_as(logits)
    return pushed.sub_(pulled.masked_fill(~positive, 0.0))


def pulls(margin: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(Z − s) and σ(Z − s) of `margin` = Z − s, which is overwritten."""
    # By default softplus turns linear at 20, where that is exact to 1e-9 only.
    return F.softplus(margin, threshold=50.0), margin.sigmoid_()
