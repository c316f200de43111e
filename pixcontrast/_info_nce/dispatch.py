"""Dispatch a problem to the form that computes it, and reduce its losses to the returned loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, gather, ranks_named
from pixcontrast._info_nce.dense import contrast_ids, dense_losses
from pixcontrast._info_nce.operators import compute_losses
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.reduction import Reduction, reduce_losses
from pixcontrast._info_nce.results import Losses
from pixcontrast._info_nce.tiled.one_tile import one_tile_losses
from pixcontrast._tensors import IGNORED, without_autocast


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
    problems: Sequence[Problem],
    weight: Tensor | None,
    reduction: Reduction,
    ranks: Ranks | None = None,
) -> Result:
    """Compute the loss of a call.

    Args:
        problems (sequence of Problem): at least one, each with the M anchors of the call. An
            anchor is ignored in all but one of them. With shards, every rank has as many problems.
        weight (Tensor, optional): (M,) weights of the anchors. None: all weights are 1.
        reduction (str): `"mean"`, `"sum"` or `"none"`.
        ranks (Ranks, optional): the ranks whose anchors the reduction covers. Default: None, this
            process alone.
    """
    with without_autocast(problems[0].anchors.device):
        losses, has_positive, num_shard_entries = _losses(problems[0])
        for problem in problems[1:]:
            more = _losses(problem)
            losses, has_positive = losses + more.losses, has_positive | more.has_positive
        loss = reduce_losses(losses, has_positive, weight, reduction, ranks)
    return Result(loss, has_positive, num_shard_entries)


def _losses(problem: Problem) -> Losses:
    """Compute the losses. `operators.py` selects between the tiled, fused and sharded forms."""
    if problem.form == "tiled" and (losses := one_tile_losses(problem)) is not None:
        return losses
    if problem.form != "dense":
        return compute_losses(problem)
    if problem.group is None:
        return Losses(*dense_losses(problem))
    return _gather_shards(problem, ranks_named(problem.group))


def _gather_shards(problem: Problem, ranks: Ranks) -> Losses:
    """Compute the dense form over the shards of all ranks, which are gathered."""
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
    ids = torch.cat([contrast_ids(problem), *_shard_ids(problem, ranks.size)])
    return Losses(*dense_losses(whole, ids), (torch.cat(labels) != IGNORED).sum())


def _shard_ids(problem: Problem, num_ranks: int) -> list[Tensor]:
    """Return the ids of each shard tensor's entries on all ranks, rank by rank."""
    device, offset, ids = problem.labels.device, 0, []
    firsts = torch.tensor([problem.first_shard_id(rank) for rank in range(num_ranks)]).to(device)
    for labels in problem.shard_labels:
        own = torch.arange(offset, offset + labels.numel(), device=device)
        ids.append((firsts[:, None] + own).flatten())
        offset += labels.numel()
    return ids
