"""Dispatch a problem to the form that computes it."""

from __future__ import annotations

from dataclasses import replace

import torch

from pixcontrast._distributed import gather
from pixcontrast._info_nce.dense import dense_losses
from pixcontrast._info_nce.operators import compute_losses
from pixcontrast._info_nce.problem import Problem, Shards, contrast_tensors
from pixcontrast._info_nce.results import Losses
from pixcontrast._info_nce.tiled.one_tile import is_one_tile, one_tile_losses
from pixcontrast._labels import IGNORED
from pixcontrast._triton import Form


def run_form(form: Form, problem: Problem, shards: Shards | None) -> Losses:
    """Compute the losses of a problem by one of the forms.

    With shards, every rank of `shards.ranks` makes this call with the same number of anchors.
    """
    if shards is None:
        if form == "dense":
            return Losses(*dense_losses(problem))
        if form == "tiled" and is_one_tile(problem):
            return one_tile_losses(problem)
        return compute_losses(problem, fused=form == "triton")
    problem = replace(problem, first_anchor_id=shards.ranks.rank * problem.labels.numel())
    if problem.seed is not None:
        # One seed for all ranks: the entries of an anchor are selected among those of all ranks.
        (seeds,) = gather(shards.ranks, [problem.seed])
        problem = replace(problem, seed=seeds[0])
    if form == "dense":
        return _run_dense(problem, shards)
    # The kernels select on one device, so mining over shards always uses the tiled form.
    fused = form == "triton" and problem.negative_sampler is None
    return compute_losses(problem, shards, fused=fused)


def _run_dense(problem: Problem, shards: Shards) -> Losses:
    """Gather all shards, whatever memory they take."""
    gathered = [
        tensor.flatten(0, 1) for tensor in gather(shards.ranks, [*shards.entries, *shards.labels])
    ]
    entries, labels = gathered[: len(shards.entries)], gathered[len(shards.entries) :]
    own = ((tensor.entries, tensor.labels, tensor.is_anchors) for tensor in problem.contrast)
    others = ((*pair, False) for pair in zip(entries, labels, strict=True))
    problem = replace(problem, contrast=contrast_tensors([*own, *others]))
    return Losses(*dense_losses(problem), (torch.cat(labels) != IGNORED).sum())
