"""The form that runs a problem, over what is at hand and over what other ranks hold."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from pixcontrast._equation import autograd
from pixcontrast._equation.backends import Form
from pixcontrast._equation.dense import dense_losses
from pixcontrast._equation.problem import Piece, Problem
from pixcontrast._labels import ABSENT
from pixcontrast._ranks import Ranks, gather


class Shards(NamedTuple):
    """Contrast entries that are spread over ranks.

    Attributes:
        ranks: which.
        pieces: what this one holds; of the same shapes on every rank.
    """

    ranks: Ranks
    pieces: tuple[Piece, ...]


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
    pieces = _of_all_ranks(problem, shards)
    held = problem.labels.new_zeros(())
    for piece in pieces[len(problem.pieces) :]:
        held = held + (piece.labels != ABSENT).sum()
    return Losses(*_run_alone(form, replace(problem, pieces=pieces)), held)


def _run_alone(form: Form, problem: Problem) -> tuple[Tensor, Tensor]:
    if form == "dense":
        return dense_losses(problem)
    if form == "tiled":
        return autograd.tiled_losses(problem)
    return autograd.fused_losses(problem)


def _of_all_ranks(problem: Problem, shards: Shards) -> tuple[Piece, ...]:
    """The pieces of a problem, and behind them those of all ranks."""
    columns = [tensor for piece in shards.pieces for tensor in (piece.entries, piece.labels)]
    gathered = [tensor.flatten(0, 1) for tensor in gather(shards.ranks, columns)]
    pieces = list(problem.pieces)
    for entries, labels in zip(gathered[::2], gathered[1::2], strict=True):
        first_column = sum(piece.labels.numel() for piece in pieces)
        pieces.append(Piece(entries, labels, False, first_column))
    return tuple(pieces)
