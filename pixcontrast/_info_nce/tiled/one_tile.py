"""The tiled form of a small problem on the CPU, whose similarities fit into one tile.

The tile of ∂L/∂s is computed by the forward and saved for the backward, where each role of a vector
costs one matrix product. This form is an autograd function for eager mode; compiled code uses
`operators.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from pixcontrast._info_nce.once_differentiable import once_differentiable, refuse_transforms
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.results import Losses
from pixcontrast._info_nce.tiled.class_order import reads_are_free
from pixcontrast._info_nce.tiled.complete_rows import (
    Columns,
    can_use_ratios,
    losses_by_ratios,
    losses_by_softmax,
)
from pixcontrast._info_nce.tiled.similarities import Similarities, max_norm
from pixcontrast._tensors import without_autocast

# Largest number of valid anchors, and of valid entries: 16 MB of similarities in float32. For
# larger problems sorted tiles are faster, and sum long rows with a smaller rounding error.
MAX_LENGTH = 2048
# Up to this number of similarities, adding the transpose of the tile costs less than a second
# matrix product.
MAX_TRANSPOSED = 1 << 16

ANCHORS = 2
"""Index of the anchors among the arguments of the autograd function; entries follow."""


def one_tile_losses(problem: Problem) -> Losses | None:
    """Compute the losses, differentiable once; None if this form does not support the problem."""
    if problem.negative_sampler is not None or problem.group is not None:
        return None
    if not (problem.is_eager and reads_are_free(problem.anchors.device)):
        return None
    all_labels = problem.labels, *problem.entry_labels
    num_anchors, *num_entries = counts = [_num_valid(labels) for labels in all_labels]
    num_columns = sum(num_entries) + num_anchors * sum(problem.is_anchors)
    if not (0 < num_anchors <= MAX_LENGTH and 0 < num_columns <= MAX_LENGTH):
        return None
    refuse_transforms(problem)
    if counts == [len(labels) for labels in all_labels]:
        return Losses(*_apply(problem))
    rows, *columns = ((labels >= 0).nonzero()[:, 0] for labels in all_labels)
    smaller = replace(
        problem,
        anchors=problem.anchors[rows],
        labels=problem.labels[rows],
        entries=_take(problem.entries, columns),
        entry_labels=_take(problem.entry_labels, columns),
    )
    losses, has_positive = (
        column.new_zeros(len(problem.labels)).index_copy(0, rows, column)
        for column in _apply(smaller)
    )
    return Losses(losses, has_positive)


def _apply(problem: Problem) -> tuple[Tensor, Tensor]:
    # Grad mode is always off inside the function.
    tensors = problem.anchors, *problem.entries
    losses, has_positive = _OneTile.apply(problem, torch.is_grad_enabled(), *tensors)  # type: ignore[no-untyped-call]
    return losses, has_positive


def _num_valid(labels: Tensor) -> int:
    """Return how many labels are not ignored."""
    num_labels = len(labels)
    if num_labels == 0 or int(labels.amin()) >= 0:  # faster than the count
        return num_labels
    return int((labels >= 0).sum())


def _take(tensors: Sequence[Tensor], indices: Sequence[Tensor]) -> list[Tensor]:
    return [tensor[index] for tensor, index in zip(tensors, indices, strict=True)]


class _OneTile(torch.autograd.Function):
    """The losses (M,) and has_positive (M,) of a problem, from its anchors and entries."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, is_grad_enabled: bool, anchors: Tensor, *entries: Tensor
    ) -> tuple[Tensor, Tensor]:
        contrast = problem.contrast
        all_labels = [tensor.labels for tensor in contrast]
        labels = all_labels[0] if len(all_labels) == 1 else torch.cat(all_labels)
        rows = problem.operand(anchors)
        parts = []
        ends = accumulate((len(one) for one in all_labels), initial=0)
        for tensor, bounds in zip(contrast, pairwise(ends), strict=True):
            operand = rows
            if not tensor.is_anchors:
                operand = problem.operand(tensor.entries)
            parts.append(Columns(slice(*bounds), operand, tensor.is_anchors))

        row_norm = max_norm(rows)
        norms = [row_norm if part.is_anchors else max_norm(part.operand) for part in parts]
        similarities = Similarities(problem, row_norm, norms)
        logits = rows.new_empty(len(rows), len(labels))
        by_ratios = can_use_ratios(problem, logits, similarities.bounded)
        for index, part in enumerate(parts):
            out = logits[:, part.range]
            similarities.write(out, rows, part.operand, index, LOG2_E if by_ratios else 1.0)
        given = problem, logits, labels, parts
        want = is_grad_enabled and any(ctx.needs_input_grad)
        if by_ratios:
            losses, has_positive, grad_logits = losses_by_ratios(*given, want_gradient=want)
        else:
            losses, has_positive, grad_logits = losses_by_softmax(
                *given, bounded=similarities.bounded, want_gradient=want
            )
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(has_positive)
        if grad_logits is not None:
            ctx.inverse_temperature = problem.inverse_temperature
            _save_for_backward(ctx, grad_logits, rows, parts, anchors, entries)
        return losses, has_positive

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        gradients: list[Tensor | None] = [None] * len(wanted)
        if upstream is None:
            return tuple(gradients)
        grad_logits, rows, anchors, *saved = ctx.saved_tensors
        num_others = len(ctx.others)
        operands, entries, fixed = (
            saved[:num_others],
            saved[num_others : 2 * num_others],
            saved[2 * num_others :],
        )
        with without_autocast(rows.device):
            # Finite, because 0 · inf is NaN, unless the upstream gradient is not: then a gradient
            # scaler has to see that.
            limit = torch.finfo(upstream.dtype).max
            scale = (upstream * ctx.inverse_temperature).clamp_(-limit, limit)
            scale = torch.where(upstream.isfinite(), scale, upstream)[:, None]
            unscaled_grad, grad_logits = grad_logits, grad_logits * scale
            by_anchors = [product * scale for product in fixed]
            for columns in ctx.own_columns:
                own = grad_logits[:, columns]
                if own.numel() <= MAX_TRANSPOSED:
                    by_anchors.append((own + own.T) @ rows)
                else:
                    by_anchors.append((own @ rows).addmm_(own.T, rows))
            for (index, columns), operand, given in zip(ctx.others, operands, entries, strict=True):
                if wanted[ANCHORS]:
                    # Scale after the product, as for entries without a gradient, so that both
                    # cases give the same bits.
                    by_anchors.append((unscaled_grad[:, columns] @ operand) * scale)
                gradients[index] = (grad_logits[:, columns].T @ rows).to(given.dtype)
            if wanted[ANCHORS]:
                total = sum(by_anchors[1:], start=by_anchors[0])
                gradients[ANCHORS] = total.to(anchors.dtype)
        sources = (upstream, anchors, *entries)
        return tuple(once_differentiable(gradient, sources) for gradient in gradients)


def _save_for_backward(
    ctx: Any,
    grad_logits: Tensor,
    rows: Tensor,
    parts: list[Columns],
    anchors: Tensor,
    entries: tuple[Tensor, ...],
) -> None:
    """Save ∂L/∂s and the operands that the backward multiplies it with.

    Entries without a gradient are multiplied now and not saved, because a bank may be updated in
    place before the backward.
    """
    by_anchors = ctx.needs_input_grad[ANCHORS]
    ctx.own_columns = [part.range for part in parts if part.is_anchors and by_anchors]
    ctx.others, operands, given, fixed = [], [], [], []
    others = (part for part in parts if not part.is_anchors)
    for index, (part, tensor) in enumerate(zip(others, entries, strict=True), start=ANCHORS + 1):
        if ctx.needs_input_grad[index]:
            ctx.others.append((index, part.range))
            operands.append(part.operand)
            given.append(tensor)
        elif by_anchors:
            fixed.append(grad_logits[:, part.range] @ part.operand)
    ctx.save_for_backward(grad_logits, rows, anchors, *operands, *given, *fixed)
