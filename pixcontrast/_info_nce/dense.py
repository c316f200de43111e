"""The dense form: the textbook formula, differentiated by autograd, in O(M·N) memory.

It is the reference for the other forms.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import ContrastTensor, Problem
from pixcontrast._info_nce.thresholds import PairKeys, select_from_rows
from pixcontrast._tensors import IGNORED


def dense_losses(problem: Problem, entry_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the losses (M,), 0 without a positive, and whether each anchor has a positive (M,).

    `entry_ids` (N,) are used instead of those of the contrast tensors.
    """
    anchors = _zero_ignored(_operand(problem, problem.anchors), problem.labels)
    entries = torch.cat(
        [anchors[:0], *(_entries(problem, tensor, anchors) for tensor in problem.contrast)]
    )
    labels = torch.cat([problem.labels[:0], *(tensor.labels for tensor in problem.contrast)])

    limit = problem.logit_limit
    logits = (_product(anchors, entries) * problem.inverse_temperature).clamp(-limit, limit)

    valid = (problem.labels != IGNORED)[:, None] & (labels != IGNORED)[None, :]
    same_class = problem.labels[:, None] == labels[None, :]
    positive = valid & same_class
    negative = valid & ~same_class
    first = 0
    for tensor in problem.contrast:
        if tensor.is_anchors:
            positive[:, first : first + len(anchors)].diagonal().fill_(False)  # j is not i itself
        first += tensor.labels.numel()
    if problem.negative_sampler is not None:
        keys = None
        if problem.seed is not None:
            anchor_ids = problem.first_anchor_id + _count(problem.labels)
            ids = contrast_ids(problem) if entry_ids is None else entry_ids
            keys = PairKeys.of(problem.seed, anchor_ids, ids).all()
        positive, negative = select_from_rows(
            problem.negative_sampler, logits.detach(), Masks(positive, negative), keys
        )

    num_positives = positive.sum(dim=1)
    mean_weights = positive / num_positives.clamp(min=1)[:, None].to(logits.dtype)
    if problem.denominator == "negatives":
        # softplus(Z − s)
        terms = -F.logsigmoid(logits - _logsumexp(logits, negative)[:, None])
        losses = (mean_weights * terms).sum(dim=1)
        losses = torch.where(negative.any(dim=1), losses, 0.0)
    else:
        losses = _logsumexp(logits, positive | negative) - (mean_weights * logits).sum(dim=1)
        # Not below 0 by rounding; the derivative stays that of the formula.
        losses = losses + (losses.clamp(min=0.0) - losses).detach()
    has_positive = num_positives > 0
    return torch.where(has_positive, losses, 0.0), has_positive


def contrast_ids(problem: Problem) -> Tensor:
    """Return the ids (N,) of the entries of all contrast tensors."""
    ids = [tensor.first_id + _count(tensor.labels) for tensor in problem.contrast]
    return torch.cat([problem.labels[:0], *ids])


def _count(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device)


def _product(anchors: Tensor, entries: Tensor) -> Tensor:
    return anchors @ entries.T


def _entries(problem: Problem, tensor: ContrastTensor, anchors: Tensor) -> Tensor:
    # Anchors in both roles are one operand, so autograd adds both gradients in the wider dtype. In
    # a 16-bit dtype both may overflow, and inf − inf is NaN.
    if tensor.is_anchors:
        return anchors
    return _zero_ignored(_operand(problem, tensor.entries), tensor.labels)


def _operand(problem: Problem, vectors: Tensor) -> Tensor:
    """Return `Problem.operand` with the derivative of the identity: gradients are not rounded."""
    if vectors.dtype == problem.product_dtype:
        return problem.operand(vectors)
    wide = problem.saturate(vectors).to(problem.compute_dtype)
    return wide + (problem.operand(vectors) - wide).detach()


def _logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the log-sum-exp over the masked entries of each row, and 0 for a row without any.

    With −∞ instead of 0, the derivative of such a row would be NaN.
    """
    rows = torch.where(mask, logits, -torch.inf)
    stand_in = torch.where(mask.any(dim=1), -torch.inf, 0.0).to(logits.dtype)[:, None]
    return torch.cat([rows, stand_in], dim=1).logsumexp(dim=1)


def _zero_ignored(vectors: Tensor, labels: Tensor) -> Tensor:
    """Replace ignored vectors by zeros, because 0 · inf is NaN."""
    return torch.where((labels != IGNORED)[:, None], vectors, 0.0)
