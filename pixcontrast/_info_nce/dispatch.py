"""From a problem to the loss: dispatch to the form that computes it, and reduce the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather, ranks_named
from pixcontrast._info_nce.dense import dense_losses
from pixcontrast._info_nce.operators import compute_losses
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.reduction import Reduction, reduce_losses
from pixcontrast._info_nce.results import Losses
from pixcontrast._info_nce.tiled.one_tile import is_one_tile, one_tile_losses
from pixcontrast._tensors import IGNORED, without_autocast


class Part(NamedTuple):
    """A problem of some anchors of a call.

    Attributes:
        problem: the problem.
        rows: the indices of its anchors among those of the call; None: it has all of them.
    """

    problem: Problem
    rows: Tensor | None = None


class Result(NamedTuple):
    """The result of a call.

    Attributes:
        loss: as `info_nce` returns it.
        has_positive: (M,) bool.
        num_shard_entries: () int64, number of entries in the shards of all ranks; None without
            shards.
    """

    loss: Tensor
    has_positive: Tensor
    num_shard_entries: Tensor | None


def reduced_loss(
    parts: Sequence[Part],
    num_anchors: int,
    weight: Tensor | None,
    reduction: Reduction,
    ranks: Ranks | None = None,
) -> Result:
    """Compute the loss of a call.

    Args:
        parts (sequence of Part): at least one. An anchor is ignored in all but one of them. With
            shards, every rank has as many parts, each with the same number of anchors.
        num_anchors (int): number of anchors M of the call.
        weight (Tensor, optional): (M,) weights of the anchors. None: all weights are 1.
        reduction (str): `"mean"`, `"sum"` or `"none"`.
        ranks (Ranks, optional): the ranks whose anchors the reduction covers. Default: None, this
            process alone.
    """
    with without_autocast(parts[0].problem.anchors.device):
        found = [_of_all(_losses(part.problem), part.rows, num_anchors) for part in parts]
        losses, has_positive, num_shard_entries = found[0]
        for more in found[1:]:
            losses, has_positive = losses + more.losses, has_positive | more.has_positive
        loss = reduce_losses(losses, has_positive, weight, reduction, ranks)
    return Result(loss, has_positive, num_shard_entries)


def _of_all(found: Losses, rows: Tensor | None, num_anchors: int) -> Losses:
    """Return losses of all anchors from those of some: 0 for the others."""
    if rows is None:
        return found
    losses = found.losses.new_zeros(num_anchors).index_copy(0, rows, found.losses)
    has_positive = found.has_positive.new_zeros(num_anchors)
    return Losses(losses, has_positive.index_copy(0, rows, found.has_positive))


def _losses(problem: Problem) -> Losses:
    if problem.form == "tiled" and is_one_tile(problem):
        return one_tile_losses(problem)
    if problem.form != "dense":
        return compute_losses(problem)
    if problem.group is None:
        return Losses(*dense_losses(problem))
    return _gather_shards(problem, ranks_named(problem.group))


def _gather_shards(problem: Problem, ranks: Ranks) -> Losses:
    """Compute the dense form over the shards of all ranks, whatever memory they take."""
    shards = [*problem.shard_entries, *problem.shard_labels]
    gathered = [tensor.flatten(0, 1) for tensor in gather(ranks, shards)]
    num_shards = len(problem.shard_entries)
    entries, labels = gathered[:num_shards], gathered[num_shards:]
    whole = replace(
        problem,
        entries=[*problem.entries, *entries],
        entry_labels=[*problem.entry_labels, *labels],
        is_anchors=[*problem.is_anchors, *num_shards * [False]],
    )
    return Losses(*dense_losses(whole), (torch.cat(labels) != IGNORED).sum())
