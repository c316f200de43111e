"""The contrast entries of a call: from the batch, the bank, and the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._bank.ring import QUEUES
from pixcontrast._info_nce.problem import Problem, Shards
from pixcontrast._loss.batch import Anchors
from pixcontrast._loss.gather import JointCall, Labelled
from pixcontrast._tensors import IGNORED
from pixcontrast.bank import MemoryBank


class ContrastSet(NamedTuple):
    """The contrast entries of a call. Labels are marked."""

    tensors: list[tuple[Tensor | None, Tensor | None]]  # on this rank; None for the anchors
    batch_labels: Tensor | None  # labels of all entries from batches, (n,)
    bank_entries: Tensor | None  # int64 number of valid entries by queue and class, on this rank
    shards: Shards | None  # entries of a bank that is spread over ranks


def contrast_set(
    sources: Sequence[str],
    anchors: Anchors,
    batch_entries: Labelled | None,
    bank: MemoryBank | None,
    joint: JointCall | None,
) -> ContrastSet:
    """Collect the entries of each source, in order.

    The entries of `"batch"` are `batch_entries`, or else the anchors. With `joint`, the anchors are
    padded, and `"batch"` also contains the entries of the other ranks.
    """
    contrast: list[tuple[Tensor | None, Tensor | None]] = []
    shards: list[tuple[Tensor, Tensor]] = []
    batch_labels = None
    queues = [source for source in sources if source in QUEUES]
    for source in sources:
        if source in QUEUES:
            assert bank is not None  # see `LossOptions`
            (shards if bank.is_spread else contrast).append(bank._labelled(source, IGNORED))
        elif source == "image" or (batch_entries is None and joint is None):
            batch_labels = anchors.labels
            contrast.append((None, None))
        elif batch_entries is not None:
            labelled = batch_entries if joint is None else joint.all_entries(batch_entries)
            batch_labels = labelled.labels
            contrast.append(labelled)
        else:
            assert joint is not None
            before, after, batch_labels = joint.other_anchors(anchors)
            contrast += [before, (None, None), after]
    spread = None
    if shards:
        assert bank is not None
        assert bank.ranks is not None
        spread = Shards(bank.ranks, *zip(*shards, strict=True))
    entries = None if bank is None else bank._copy_counts(queues)
    return ContrastSet(contrast, batch_labels, entries, spread)


def split_by_image(problem: Problem, images: Tensor, num_images: int) -> list[Problem]:
    """Return one problem for each image, in which the anchors of the other images are ignored.

    `images` (M,) is the image of each anchor.
    """
    return [
        replace(problem, labels=torch.where(images == image, problem.labels, IGNORED))
        for image in range(max(num_images, 1))
    ]
