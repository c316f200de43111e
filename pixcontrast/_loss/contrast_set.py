"""The contrast entries of a call: from the batch, the bank, and the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._bank.ring import QUEUES
from pixcontrast._info_nce.problem import Shards
from pixcontrast._loss.batch import Anchors
from pixcontrast._loss.gather import JointCall, Labelled
from pixcontrast._pixels.regions import Regions
from pixcontrast._tensors import IGNORED
from pixcontrast.bank import MemoryBank


class BatchEntries(NamedTuple):
    """The entries that the batch contributes.

    Attributes:
        entries: vectors and marked labels, or None if the anchors are the entries.
        regions: regions of the bank's classes, if they were computed. The bank can reuse them.
    """

    entries: Labelled | None = None
    regions: Regions | None = None


class ContrastSet(NamedTuple):
    """The contrast entries of a call. Labels are marked.

    Attributes:
        tensors: entries and labels of each contrast tensor on this rank, None for the anchors.
        batch_labels: labels of all entries from batches, shape (n,), or None if there are none.
        bank_entries: int64 number of valid entries of each queue, on this rank.
        shards: entries of a bank that is spread over ranks, or None.
        regions: regions of the bank's classes in this batch, if they were computed.
    """

    tensors: list[tuple[Tensor | None, Tensor | None]]
    batch_labels: Tensor | None
    bank_entries: tuple[Tensor, ...]
    shards: Shards | None
    regions: Regions | None


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
    batch: BatchEntries,
    bank: MemoryBank | None,
    joint: JointCall | None,
) -> ContrastSet:
    """Collect the entries of each source, in order.

    Args:
        sources (sequence of str): `"batch"`, `"pixels"`, `"regions"`.
        anchors (Anchors): anchors of this rank, padded if `joint` is given.
        batch (BatchEntries): entries that the batch of this rank contributes.
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
        elif batch.entries is not None:
            entries = batch.entries if joint is None else joint.all_entries(batch.entries)
            batch_labels = entries.labels
            contrast.append(entries)
        elif joint is None:
            batch_labels = anchors.labels
            contrast.append((None, None))
        else:
            before, after, batch_labels = joint.other_anchors(anchors)
            contrast += [before, (None, None), after]
    spread = None
    if shards:
        assert bank is not None
        assert bank.ranks is not None
        spread = Shards(bank.ranks, *zip(*shards, strict=True))
    return ContrastSet(contrast, batch_labels, tuple(bank_entries), spread, batch.regions)
