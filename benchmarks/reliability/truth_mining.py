"""Of which anchors it is sure which entries are selected, whatever rounding does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.reliability.truth_pixels import is_present
from pixcontrast import HardNegativeSampler

if TYPE_CHECKING:
    from benchmarks.reliability.truth_equation import Equation


def sure_rows(
    mining: HardNegativeSampler, equation: Equation, rounded: list[Tensor | None], delta: float
) -> Tensor:
    """(M,) whether similarities that are each off by `delta` select what those of float64 do.

    A random selection knows no similarity. Else the last one that counts and the first that does
    not have to be further apart than both can be off: what ties, or nearly, may fall either way.
    """
    num_anchors = len(equation.anchors)
    if mining.strategy == "random":
        return torch.ones(num_anchors, dtype=torch.bool)
    ignore = equation.options["ignore_index"]
    labels = equation.labels.to(torch.int64)
    anchors = _or_zero(equation.anchors.double(), labels, ignore)
    products, classes, is_self = [], [], []
    for entries, own in zip(rounded, equation.contrast_labels, strict=True):
        of_anchors = entries is None or own is None
        entries = equation.anchors.double() if entries is None else entries
        own = labels if own is None else own.to(torch.int64)
        products.append(anchors @ _or_zero(entries, own, ignore).T)
        classes.append(own)
        is_self.append(
            torch.eye(num_anchors, dtype=torch.bool)
            if of_anchors
            else torch.zeros(num_anchors, len(own), dtype=torch.bool)
        )
    if not products:
        return torch.ones(num_anchors, dtype=torch.bool)
    similarities = torch.cat(products, dim=1) / float(equation.options["temperature"])
    columns = torch.cat(classes)
    present = is_present(labels, ignore)[:, None] & is_present(columns, ignore)
    same = labels[:, None] == columns
    positive = present & same & ~torch.cat(is_self, dim=1)
    negatives_sure = _side(mining, similarities, present & ~same, mining.num_negatives, delta)
    return negatives_sure & _side(mining, -similarities, positive, mining.num_positives, delta)


def _side(
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
    last, following = (ordered.gather(1, place[:, None])[:, 0] for place in (taken - 1, taken))
    # Each is off by delta at most; the rest is for the rounding of float64 itself.
    return (taken >= available) | (last - following > 3 * delta)


def _or_zero(vectors: Tensor, labels: Tensor, ignore: int) -> Tensor:
    return torch.where(is_present(labels, ignore)[:, None], vectors, 0.0)
