"""For which anchors rounding cannot change the mined selection."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import HardNegativeSampler


class Pairs(NamedTuple):
    """All pairs of an equation: similarities (M, N) in float64, and which are of either kind."""

    similarities: Tensor
    positive: Tensor
    negative: Tensor


def sure_rows(mining: HardNegativeSampler, pairs: Pairs, delta: float) -> Tensor:
    """Return (M,) whether similarities with errors up to `delta` select the same entries.

    A random selection does not depend on similarities. Otherwise the last selected entry and the
    first rejected one must differ by more than both errors, because near ties may fall either way.
    """
    if mining.strategy == "random":
        return torch.ones(len(pairs.similarities), dtype=torch.bool)
    hardness = pairs.similarities
    negatives = _is_sure(mining, hardness, pairs.negative, mining.num_negatives, delta)
    return negatives & _is_sure(mining, -hardness, pairs.positive, mining.num_positives, delta)


def _is_sure(
    mining: HardNegativeSampler,
    hardness: Tensor,
    candidate: Tensor,
    count: int | None,
    delta: float,
) -> Tensor:
    if count is None or candidate.shape[1] == 0:
        return torch.ones(len(candidate), dtype=torch.bool)
    available = candidate.sum(dim=1)
    if mining.strategy == "hardest":
        taken = torch.full_like(available, min(count, candidate.shape[1]))
    else:
        taken = (mining.ratio * available.double() - 1e-6).ceil().clamp(min=1).to(torch.int64)
    ordered = hardness.masked_fill(~candidate, -torch.inf).sort(dim=1, descending=True).values
    ordered = torch.nn.functional.pad(ordered, (0, 1), value=-torch.inf)
    last, following = (ordered.gather(1, index[:, None])[:, 0] for index in (taken - 1, taken))
    # Two errors of delta, and one more for the rounding of float64.
    return (taken >= available) | (last - following > 3 * delta)
