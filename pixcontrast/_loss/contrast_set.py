"""The contrast entries of a call: from the batch, the bank, and the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._bank.ring import QUEUES
from pixcontrast._info_nce.dispatch import Part
from pixcontrast._info_nce.problem import Problem, Shards
from pixcontrast._loss.batch import Anchors
from pixcontrast._loss.gather import JointCall, Labelled
from pixcontrast._tensors import IGNORED
from pixcontrast.bank import MemoryBank


class ContrastSet(NamedTuple):
    """The contrast entries of a call. Labels are marked.

    Attributes:
        tensors: entries and labels of each contrast tensor on this rank, None for the anchors.
        batch_labels: labels of all entries from batches, shape (n,), or None if there are none.
        bank_entries: int64 number of valid entries of each queue, on this rank.
        shards: entries of a bank that is spread over ranks, or None.
    """

    tensors: list[tuple[Tensor | None, Tensor | None]]
    batch_labels: Tensor | None
    bank_entries: tuple[Tensor, ...]
    shards: Shards | None


def resolve_sources(
    contrast_with: Sequence[str] | None, choices: Sequence[str], bank: MemoryBank | None
) -> tuple[str, ...]:
    """Check the option `contrast_with`, or replace None by every source that exists.

    Args:
        contrast_with (sequence of str, optional): the option.
        choices (sequence of str): the sources that the loss supports.
        bank (MemoryBank, optional): the bank of the loss.
    """
    if contrast_with is None:
        queues = (choice for choice in choices if choice in QUEUES)
        return ("batch", *(queue for queue in queues if bank is not None and bank.slots(queue)))
    check.check_contrast_with(contrast_with, choices)
    check.expect(
        not {"batch", "image"} <= set(contrast_with),
        "contrast_with",
        '"batch" or "image", which are the anchors of the batch and those of one image',
        contrast_with,
    )
    for queue in contrast_with:
        if queue in QUEUES and bank is None:
            expected = f"bank=MemoryBank(...) with {queue!r}, which is a queue of the bank"
            fix = f"pass a bank, or leave {queue!r} out"
            check.refuse("contrast_with", expected, "bank=None", fix)
        if queue in QUEUES and bank is not None and bank.slots(queue) == 0:
            found = f"{queue!r}, and the bank was built without that queue"
            fix = f"give it slots, or leave {queue!r} out"
            check.refuse("contrast_with", "queues of the bank", found, fix)
    return tuple(contrast_with)


def contrast_set(
    sources: Sequence[str],
    anchors: Anchors,
    batch_entries: Labelled | None,
    bank: MemoryBank | None,
    joint: JointCall | None,
) -> ContrastSet:
    """Collect the entries of each source, in order.

    Args:
        sources (sequence of str): `"batch"`, `"image"`, `"pixels"`, `"regions"`.
        anchors (Anchors): anchors of this rank, padded if `joint` is given.
        batch_entries (Labelled, optional): the entries of `"batch"` if they are not the anchors.
        bank (MemoryBank, optional): the bank. Required for its queues.
        joint (JointCall, optional): if given, `"batch"` also contains the entries of other ranks.
    """
    contrast: list[tuple[Tensor | None, Tensor | None]] = []
    shards: list[tuple[Tensor, Tensor]] = []
    batch_labels = None
    bank_entries: list[Tensor] = []
    for source in sources:
        if source in QUEUES:
            assert bank is not None  # see `resolve_sources`
            (shards if bank.is_spread else contrast).append(bank._labelled(source, IGNORED))
            bank_entries.append(bank.count(source).sum())
        elif source == "image" or (batch_entries is None and joint is None):
            batch_labels = anchors.labels
            contrast.append((None, None))
        elif batch_entries is not None:
            entries = batch_entries if joint is None else joint.all_entries(batch_entries)
            batch_labels = entries.labels
            contrast.append(entries)
        else:
            assert joint is not None
            before, after, batch_labels = joint.other_anchors(anchors)
            contrast += [before, (None, None), after]
    spread = None
    if shards:
        assert bank is not None
        assert bank.ranks is not None
        spread = Shards(bank.ranks, *zip(*shards, strict=True))
    return ContrastSet(contrast, batch_labels, tuple(bank_entries), spread)


def split_by_image(problem: Problem, images: Tensor, num_images: int) -> list[Part]:
    """Split a problem into one for each image.

    `images` (M,) is the image of each anchor. Where reading values is a wait, or ranks call with
    the same number of anchors, a part has all anchors, and those of other images are ignored.
    """
    selects_rows = check.values_can_be_seen(images) and problem.group is None
    parts = []
    for image in range(max(num_images, 1)):
        labels = torch.where(images == image, problem.labels, IGNORED)
        if selects_rows:
            rows = (labels != IGNORED).nonzero()[:, 0]
            own = replace(problem, anchors=problem.anchors[rows], labels=labels[rows])
            parts.append(Part(own, rows))
        else:
            parts.append(Part(replace(problem, labels=labels)))
    return parts
