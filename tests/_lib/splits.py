"""A problem whose contrast is split into parts, and its losses by any split and by the textbook."""

from dataclasses import replace

import torch
from problems import IGNORE, labels, vectors

from pixcontrast._info_nce.dense import dense_losses
from pixcontrast._info_nce.derivative import complete
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.results import merge_denominators, merge_positives
from pixcontrast._tensors import mark_ignored

CLASSES = 4


def problem_of(
    numbers=range(4), dtype=torch.float64, denominator="negatives", **options
) -> Problem:
    """Anchors, against some of: themselves, a piece of one class, one with nothing, another."""
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(13, 16, generator, dtype)
    anchor_labels = mark_ignored(labels(13, CLASSES, generator), IGNORE)
    pieces = [(None, None)]
    for size in (9, 5, 21):
        entry_labels = mark_ignored(labels(size, CLASSES, generator), IGNORE)
        if size == 9:
            entry_labels[:] = 1
        if size == 5:
            entry_labels[:] = -1
        pieces.append((vectors(size, 16, generator, dtype), entry_labels))
    contrast = [pieces[number] for number in numbers]
    problem = Problem.of(
        anchors, anchor_labels, contrast, form="tiled", denominator=denominator, **options
    )
    return replace(problem, want_gradient=True)


def forward_in_parts(make_passes, splits, **options):
    """Losses and gradient of the anchors in their role as anchors, of parts that are merged."""
    parts = [make_passes(problem_of(numbers, **options)) for numbers in splits]
    denominator = merge_denominators([part.denominator() for part in parts])
    positives = merge_positives([part.positives(denominator.lse) for part in parts])
    return complete(problem_of(**options), denominator, positives)


def expected_of(**options):
    """The same by the textbook formula: entries are held fixed, also where they are anchors."""
    problem = problem_of(**options)
    anchors = problem.anchors.clone().requires_grad_()
    fixed = [(piece.entries, piece.labels) for piece in problem.contrast[1:]]
    # Themselves as entries that are someone else's: all but oneself, one anchor at a time.
    losses, has_positive = [], []
    for i in range(len(anchors)):
        others = problem.labels.clone()
        others[i] = -1
        one = Problem.of(
            anchors[i : i + 1],
            problem.labels[i : i + 1],
            [(problem.anchors, others), *fixed],
            form="dense",
            denominator=problem.denominator,
            unit_length=problem.unit_length,
        )
        loss, there = dense_losses(one)
        losses.append(loss)
        has_positive.append(there)
    loss = torch.cat(losses)
    (gradient,) = torch.autograd.grad(loss.sum(), anchors)
    return loss.detach(), gradient, torch.cat(has_positive)


SPLITS = {
    "all at once": [(0, 1, 2, 3)],
    "one by one": [(0,), (1,), (2,), (3,)],
    "in pairs": [(0, 2), (1, 3)],
    "with nothing": [(), (0, 1, 2, 3), ()],
}
