"""The loss as different people write it, and the truth it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._ways.authors_step import authors_formula
from benchmarks._ways.problem import TEMPERATURE, Problem
from pixcontrast._info_nce.dispatch import reduced_loss
from pixcontrast._info_nce.problem import Problem as ContrastProblem
from pixcontrast._tensors import mark_ignored
from pixcontrast._triton import choose
from pixcontrast.functional import info_nce
from pixcontrast.samplers import HardNegativeSampler, draw_seed

MOST_ELEMENTS = 1 << 26
"""Of a float64 matrix of the truth, which is made over some anchors at a time."""

Losses = tuple[Tensor, Tensor]
"""A loss and the anchors' gradient (M, D)."""


def our_loss(
    *given: Any,
    backend: str,
    negative_sampler: HardNegativeSampler | None = None,
    unit_length: bool = False,
    ignore_index: int = 255,
) -> Tensor:
    """Return the loss by `info_nce`, or for vectors of unit length in the form of the losses."""
    if not unit_length:
        return info_nce(
            *given,
            temperature=TEMPERATURE,
            negative_sampler=negative_sampler,
            ignore_index=ignore_index,
            backend=backend,  # type: ignore[arg-type]
        )
    anchors, labels, *others = given
    contrast, contrast_labels = (
        [one] if one is None or isinstance(one, Tensor) else one for one in others
    )
    problem = ContrastProblem.of(
        anchors,
        mark_ignored(labels, ignore_index),
        [
            (entries, None if names is None else mark_ignored(names, ignore_index))
            for entries, names in zip(contrast, contrast_labels, strict=True)
        ],
        form=choose(backend, anchors),  # type: ignore[arg-type]
        temperature=TEMPERATURE,
        negative_sampler=negative_sampler,
        seed=draw_seed(negative_sampler, anchors.device, None),
        unit_length=True,
    )
    return reduced_loss([problem], None, "mean").loss


def textbook_loss(problem: Problem) -> Tensor:
    """Return the loss by the formula with a softplus, which holds M×N matrices.

    The product is made in the dtype of the anchors, the rest in float32 (float64 for float64).
    """
    total, count = _textbook_sums(problem, 0, len(problem.anchors))
    return total / count


def authors_loss(problem: Problem) -> Tensor:
    """Return the loss as the authors' code computes it, operation for operation, with its masks."""
    labels = problem.anchor_labels
    same = (labels[:, None] == problem.contrast_labels[None, :]).float()
    positive = same
    if problem.entries is None:
        numbers = torch.arange(len(labels), device=labels.device)[:, None]
        positive = same * torch.ones_like(same).scatter_(1, numbers, 0)
    return authors_formula(problem.anchors, problem.contrast, positive, 1 - same, TEMPERATURE)


def truth_of(problem: Problem) -> Losses:
    """Return loss and gradient by the textbook formula in float64, some anchors at a time."""
    exact = problem.to(torch.float64)
    rows = max(1, MOST_ELEMENTS // max(1, len(exact.contrast)))
    loss, gradient = exact.anchors.new_zeros(()), torch.zeros_like(exact.anchors)
    count = exact.anchors.new_zeros(())
    for start in range(0, len(exact.anchors), rows):
        part, num_anchors = _textbook_sums(exact, start, start + rows)
        gradient += torch.autograd.grad(part, exact.anchors)[0]
        loss += part.detach()
        count += num_anchors
    return loss / count, gradient / count


def relative_error(found: Losses, truth: Losses) -> float:
    """Return the larger error of a loss and its gradient, ratios of norms; NaN as infinity."""
    errors = [
        float((made.double() - right).norm() / right.norm())
        for made, right in zip(found, truth, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)


def _textbook_sums(problem: Problem, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of some anchors, and how many of them have a positive."""
    anchors, labels = problem.anchors[start:stop], problem.anchor_labels[start:stop]
    same = labels[:, None] == problem.contrast_labels[None, :]
    products = anchors @ problem.contrast.T
    wide = torch.float64 if products.dtype == torch.float64 else torch.float32
    logits = products.to(wide) / TEMPERATURE
    z = logits.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = same
    if problem.entries is None:
        numbers = torch.arange(start, start + len(anchors), device=anchors.device)
        columns = torch.arange(len(problem.contrast), device=anchors.device)
        positive = same & (numbers[:, None] != columns[None, :])
    num_positives = positive.sum(dim=1)
    losses = (F.softplus(z - logits) * positive).sum(dim=1) / num_positives.clamp(min=1)
    return losses.sum(), (num_positives > 0).sum()
