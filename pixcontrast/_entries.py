"""What the anchors of a call are contrasted with: batch, bank, and what other ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pixcontrast._across import Across
from pixcontrast._equation.forms import Shards
from pixcontrast._equation.problem import Piece
from pixcontrast._labels import mark_absent
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
        batch_labels: (n,) int64, of those that batches contribute, `ABSENT` where there is none;
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
    batch_labels = None
    if "batch" in sources:
        if batch.entries is None or batch.labels is None:
            batch_labels = anchor_labels
            vectors.append(None)
            labels.append(None)
            if across is not None:
                before, after, batch_labels = across.other_anchors(anchors, anchor_labels)
                vectors = [before.vectors, None, after.vectors]
                labels = [before.labels, None, after.labels]
        else:
            own = batch.entries, batch.labels
            entries, batch_labels = own if across is None else across.all_entries(*own)
            vectors.append(entries)
            labels.append(batch_labels)
        batch_labels = mark_absent(batch_labels, ignore_index)

    shards = None
    if bank is not None:
        of_queues = [bank.entries(queue) for queue in sources if queue in QUEUES]
        if bank.is_spread and of_queues:
            shards = _shards(bank, of_queues, ignore_index)
        else:
            vectors += [entries for entries, _ in of_queues]
            labels += [entry_labels for _, entry_labels in of_queues]
    return Entries(vectors, labels, batch_labels, shards)


def _shards(
    bank: MemoryBank, of_queues: Sequence[tuple[Tensor, Tensor]], ignore_index: int
) -> Shards:
    """What this rank holds of a bank that is spread over several."""
    assert bank.ranks is not None
    pieces: list[Piece] = []
    first_column = 0
    for entries, labels in of_queues:
        pieces.append(Piece(entries, mark_absent(labels, ignore_index), False, first_column))
        first_column += len(labels)
    return Shards(bank.ranks, tuple(pieces))
