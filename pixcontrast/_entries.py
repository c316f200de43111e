"""What the anchors of a call are contrasted with: batch, bank, and what other ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pixcontrast._equation.forms import Shards
from pixcontrast._labels import mark_ignored
from pixcontrast._loss.gather import Across
from pixcontrast._regions import Regions
from pixcontrast.bank import QUEUES, MemoryBank


class BatchPiece(NamedTuple):
    """The entries that a batch itself contributes; None: the anchors.

    `regions` are those of the bank's classes, where they were made: it need not make them again.
    """

    entries: Tensor | None = None
    labels: Tensor | None = None
    regions: Regions | None = None


class Entries(NamedTuple):
    """The contrast entries of a call.

    Attributes:
        vectors, labels: those at hand, as `info_nce` takes them.
        batch_labels: (n,) int64, of those that batches contribute, `IGNORED` where there is none;
            None: they contribute none.
        shards: those of a bank that is spread over ranks.
    """

    vectors: list[Tensor | None]
    labels: list[Tensor | None]
    batch_labels: Tensor | None
    shards: Shards | None


def entries_of_call(
    sources: Sequence[str],
    anchors: Tensor,
    anchor_labels: Tensor,
    batch: BatchPiece,
    bank: MemoryBank | None,
    across: Across | None,
    ignore_index: int,
) -> Entries:
    """What `sources` name, in their order; `across`: with the batches of all ranks."""
    vectors: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    of_shards: list[tuple[Tensor, Tensor]] = []
    batch_labels = None
    for source in sources:
        if source in QUEUES:
            assert bank is not None  # the loss was not built without
            entries, entry_labels = bank.entries(source)
            if bank.is_spread:
                of_shards.append((entries, mark_ignored(entry_labels, ignore_index)))
            else:
                vectors.append(entries)
                labels.append(entry_labels)
        elif batch.entries is not None and batch.labels is not None:
            own = batch.entries, batch.labels
            entries, batch_labels = own if across is None else across.all_entries(*own)
            vectors.append(entries)
            labels.append(batch_labels)
        elif across is None:
            batch_labels = anchor_labels
            vectors.append(None)
            labels.append(None)
        else:
            before, after, batch_labels = across.other_anchors(anchors, anchor_labels)
            vectors += [before.vectors, None, after.vectors]
            labels += [before.labels, None, after.labels]

    shards = None
    if of_shards:
        assert bank is not None
        assert bank.ranks is not None
        shards = Shards(bank.ranks, *zip(*of_shards, strict=True))
    if batch_labels is not None:
        batch_labels = mark_ignored(batch_labels, ignore_index)
    return Entries(vectors, labels, batch_labels, shards)
