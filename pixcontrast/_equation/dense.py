"""The equation in its textbook form: every similarity at once, differentiated by autograd.

This is the truth the other forms are checked against. Its M×N matrices are its price.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._equation.problem import Piece, Problem
from pixcontrast._labels import IGNORED


def dense_losses(problem: Problem) -> tuple[Tensor, Tensor]:
    """(M,) losses, 0 without a positive, and (M,) whether the anchor has a positive."""
    anchors = _zero_absent(_operand(problem, problem.anchors), problem.labels)
    entries = torch.cat(
        [anchors[:0], *(_entries(problem, piece, anchors) for piece in problem.pieces)]
    )
    labels = torch.cat([problem.labels[:0], *(piece.labels for piece in problem.pieces)])

    limit = problem.logit_limit
    logits = (_product(anchors, entries) * problem.inverse_temperature).clamp(-limit, limit)

    present = (problem.labels != IGNORED)[:, None] & (labels != IGNORED)[None, :]
    same_class = problem.labels[:, None] == labels[None, :]
    positive = present & same_class & ~_self_columns(problem)
    negative = present & ~same_class
    if problem.mining is not None:
        positive, negative = problem.mining.select(
            logits.detach(), positive, negative, seed=problem.seed
        )

    num_positives = positive.sum(dim=1)
    share = positive / num_positives.clamp(min=1)[:, None].to(logits.dtype)
    if problem.denominator == "negatives":
        # softplus(Z − s), which is exactly 0 where there is no negative and Z is −∞.
        terms = -F.logsigmoid(logits - _log_sum_exp(logits, negative)[:, None])
        losses = torch.where(negative.any(dim=1), (share * terms).sum(dim=1), 0.0)
    else:
        losses = _log_sum_exp(logits, positive | negative) - (share * logits).sum(dim=1)
    has_positive = num_positives > 0
    return torch.where(has_positive, losses, 0.0), has_positive


def _product(anchors: Tensor, entries: Tensor) -> Tensor:
    return anchors @ entries.T


def _entries(problem: Problem, piece: Piece, anchors: Tensor) -> Tensor:
    # One operand for both roles: their gradients meet in the dtype that accumulates, where a
    # sum of two that overflow a 16-bit dtype is not yet inf − inf.
    if piece.is_anchors:
        return anchors
    return _zero_absent(_operand(problem, piece.entries), piece.labels)


def _operand(problem: Problem, vectors: Tensor) -> Tensor:
    """`Problem.operand`, whose derivative is not rounded with it."""
    if vectors.dtype == problem.product_dtype:
        return problem.operand(vectors)
    wide = problem.within_range(vectors).to(problem.compute_dtype)
    return wide + (problem.operand(vectors) - wide).detach()


def _log_sum_exp(logits: Tensor, among: Tensor) -> Tensor:
    """Z over the chosen entries of each row; a row with none gets a finite stand-in.

    The stand-in (the row as it is, one zero put beside it) keeps NaN out of the derivatives of
    rows whose loss is then set to 0.
    """
    rows = torch.where(among, logits, -torch.inf)
    beside = torch.where(among.any(dim=1), -torch.inf, 0.0).to(logits.dtype)[:, None]
    return torch.cat([rows, beside], dim=1).logsumexp(dim=1)


def _self_columns(problem: Problem) -> Tensor:
    """(M, N) True where the entry is the anchor itself."""
    device, num_anchors = problem.labels.device, problem.labels.numel()
    parts = [torch.zeros(num_anchors, 0, dtype=torch.bool, device=device)]
    for piece in problem.pieces:
        num_entries = piece.labels.numel()
        if piece.is_anchors:
            parts.append(torch.eye(num_entries, dtype=torch.bool, device=device))
        else:
            parts.append(torch.zeros(num_anchors, num_entries, dtype=torch.bool, device=device))
    return torch.cat(parts, dim=1)


def _zero_absent(vectors: Tensor, labels: Tensor) -> Tensor:
    """Vectors that take no part hold zeros: 0 · inf in a product would reach those that do."""
    return torch.where((labels != IGNORED)[:, None], vectors, 0.0)
