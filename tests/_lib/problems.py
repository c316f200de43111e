"""Random problems for `info_nce`, the plainest writing of the equation, and how close is close."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

IGNORE = 255
DENOMINATORS = ("negatives", "all")
MININGS = {
    "everything": None,
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=5, num_positives=3),
    "semi-hard": HardNegativeSampler(ratio=0.4, num_negatives=3, num_positives=None),
    "random": HardNegativeSampler(strategy="random", num_negatives=4, num_positives=2),
}


def vectors(rows: int, dim: int, generator: torch.Generator, dtype=torch.float64) -> Tensor:
    """Unit-length vectors, as the losses make them."""
    made = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(made, dim=1).to(dtype)


def labels(rows: int, classes: int, generator: torch.Generator) -> Tensor:
    """Classes, some of them ignored and some negative, in no order."""
    made = torch.randint(0, classes, (rows,), generator=generator)
    chance = torch.rand(rows, generator=generator)
    made[chance < 0.1] = IGNORE
    made[chance > 0.95] = -3
    return made


def loss_and_gradients(
    backend: str,
    anchors: Tensor,
    anchor_labels: Tensor,
    contrast: Any = None,
    contrast_labels: Any = None,
    upstream: Tensor | None = None,
    **options: Any,
) -> list[Tensor]:
    """The loss, and its gradient by the anchors and by every contrast tensor."""
    anchors = anchors.detach().clone().requires_grad_()
    pieces = contrast
    leaves = [anchors]
    if isinstance(contrast, Tensor):
        pieces = contrast.detach().clone().requires_grad_()
        leaves.append(pieces)
    elif isinstance(contrast, Sequence):
        pieces = [None if p is None else p.detach().clone().requires_grad_() for p in contrast]
        leaves += [p for p in pieces if p is not None]
    loss = info_nce(anchors, anchor_labels, pieces, contrast_labels, backend=backend, **options)
    gradients = torch.autograd.grad(loss, leaves, upstream)
    return [loss.detach(), *gradients]


def error_of_loss(dtype: torch.dtype, dim: int, similarity: float, terms: int) -> float:
    """The bound of docs/numerics.md: rounding in similarities, and in sums of so many terms."""
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    delta = (dim + 8) * eps * similarity
    return 4 * (delta + (terms + 20) * eps * (1 + similarity + math.log(max(terms, 2))))


def worst_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error, each tensor relative to its largest element.

    But relative to a thousandth at the least: where an anchor's one entry is its positive and all
    of its softmax, terms of size one cancel to zero or a rounding, in every form.
    """
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert torch.isfinite(a).all()
        if e.numel():
            largest = max(float(e.abs().max()), 1e-3)
            error = float((a.double() - e.double()).abs().max())
            worst = max(worst, error / largest)
    return worst


def by_hand(
    anchors: Tensor,
    anchor_labels: Tensor,
    entries: Tensor,
    entry_labels: Tensor,
    *,
    temperature: float = 0.1,
    denominator: str = "negatives",
    same: bool = False,
) -> list[float | None]:
    """The equation, one number at a time; None for an anchor without a positive."""
    losses: list[float | None] = []
    for i, label in enumerate(anchor_labels.tolist()):
        positives, negatives = [], []
        for j, other in enumerate(entry_labels.tolist()):
            out = label in (IGNORE,) or label < 0 or other in (IGNORE,) or other < 0
            if out or (same and i == j):
                continue
            s = float(anchors[i] @ entries[j]) / temperature
            (positives if other == label else negatives).append(s)
        if not positives:
            losses.append(None)
        elif denominator == "negatives":
            pushed = sum(math.exp(s) for s in negatives)
            terms = [math.log(math.exp(s) + pushed) - s for s in positives]
            losses.append(sum(terms) / len(terms))
        else:
            z = math.log(sum(math.exp(s) for s in positives + negatives))
            losses.append(z - sum(positives) / len(positives))
    return losses
