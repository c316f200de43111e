"""The form that runs a problem, over what is at hand and over what other ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather
from pixcontrast._equation import autograd
from pixcontrast._equation.backends import Form
from pixcontrast._equation.dense import dense_losses
from pixcontrast._equation.problem import Problem, numbered
from pixcontrast._labels import IGNORED


class Shards(NamedTuple):
    """Contrast entries that are spread over ranks.

    Attributes:
        ranks: which.
        entries: (n, D) each, what this one holds; of the same shapes on every rank.
        labels: (n,) int64 each, `IGNORED` for entries that take no part.
    """

    ranks: Ranks
    entries: Sequence[Tensor]
    labels: Sequence[Tensor]


class Losses(NamedTuple):
    """What a form makes of a problem.

    Attributes:
        losses: (M,) 0 without a positive.
        has_positive: (M,) bool.
        held: () int64, how many entries the shards of all ranks hold; None without shards.
    """

    losses: Tensor
    has_positive: Tensor
    held: Tensor | None = None


def run_form(form: Form, problem: Problem, shards: Shards | None) -> Losses:
    """Every rank calls this alike where there are shards, with as many anchors."""
    if shards is None:
        return Losses(*_run_alone(form, problem))
    problem = replace(problem, first_row=shards.ranks.rank * problem.labels.numel())
    if problem.seed is not None:
        # One seed for all: what counts for an anchor is chosen among the entries of all ranks.
        (seeds,) = gather(shards.ranks, [problem.seed])
        problem = replace(problem, seed=seeds[0])
    if form != "dense":
        # The kernels' selection knows of one device: mining over several is tiled on any.
        fused = form == "triton" and problem.mining is None
        return Losses(*autograd.sharded_losses(problem, *shards, fused=fused))
    # The textbook formula has every entry at hand, whatever the price.
    gathered = [
        tensor.flatten(0, 1) for tensor in gather(shards.ranks, [*shards.entries, *shards.labels])
    ]
    entries, labels = gathered[: len(shards.entries)], gathered[len(shards.entries) :]
    own = ((piece.entries, piece.labels, piece.is_anchors) for piece in problem.pieces)
    pieces = numbered([*own, *((*pair, False) for pair in zip(entries, labels, strict=True))])
    held = (torch.cat(labels) != IGNORED).sum()
    return Losses(*_run_alone(form, replace(problem, pieces=pieces)), held)


def _run_alone(form: Form, problem: Problem) -> tuple[Tensor, Tensor]:
    if form == "dense":
        return dense_losses(problem)
    if form == "tiled":
        return autograd.tiled_losses(problem)
    return autograd.fused_losses(problem)
