"""What a training step of several ranks costs, by arithmetic: the formulas of docs/scale.md.

Sizes are those of one rank unless said otherwise. A test counts the messages of real steps against
`messages`; `benchmarks.ranks` measures what else can be measured without the machines in question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LABEL_BYTES = 8
COUNT_BYTES = 8
SIZES_BYTES = 32
"""What a host tells the others before it sends anything: the call, and three integers."""
MEAN_BYTES = 16
"""Two float64: the sum of a rank's weights, and the largest of them."""
ALIGNMENT = 8


@dataclass(frozen=True)
class Step:
    """A step of `PixelContrastLoss` against batch and bank, on each of some ranks.

    Attributes:
        ranks: W.
        images: B.
        anchors: K, what the sampler gives, padding among it.
        dim: D.
        num_classes: C.
        pixels_per_image: E, the most pixels that an image gives to a class.
        pixel_slots, region_slots: of a class, on one rank.
        gather: whether anchors are contrasted with those of all ranks.
        sharded: whether the bank is spread over the ranks.
        anchor_bytes, bank_bytes: of a number of an anchor, and of a stored vector.
        sum_bytes: of the numbers in which sums are made.
        written: entries that there are in the whole bank; None: as many as slots.
    """

    ranks: int
    images: int
    anchors: int
    dim: int
    num_classes: int
    pixels_per_image: int
    pixel_slots: int
    region_slots: int
    gather: bool = True
    sharded: bool = False
    anchor_bytes: int = 4
    bank_bytes: int = 4
    sum_bytes: int = 4
    written: int | None = None


class Message(NamedTuple):
    """A collective.

    Attributes:
        what: what is in it.
        collective: "all-gather", where every other rank is sent the same, or "all-to-all".
        parcel: bytes that one rank sends to one other.
    """

    what: str
    collective: str
    parcel: int


def slots(step: Step) -> int:
    """Of one rank, all classes and both queues."""
    return step.num_classes * (step.pixel_slots + step.region_slots)


def entries(step: Step) -> int:
    """N, the bank's entries that an anchor is contrasted with, wherever they are."""
    if step.written is not None:
        return step.written
    return slots(step) * (step.ranks if step.sharded else 1)


def bank_bytes(step: Step) -> int:
    """Of one rank."""
    return slots(step) * step.dim * step.bank_bytes


def label_bytes(step: Step) -> int:
    """Of one rank: the labels of its slots are made in each call, and once more marked."""
    return 2 * LABEL_BYTES * slots(step)


def bank_flops(step: Step) -> int:
    """Of one rank: two products in the forward. The gradient of the anchors is among them.

    Of a whole bank, K anchors by N entries; of a sharded one, W·K anchors by N/W. It is the same.
    """
    return 4 * step.anchors * entries(step) * step.dim


def batch_flops(step: Step) -> int:
    """Of one rank: three products, since the entries want a gradient too."""
    return 6 * step.anchors * _batch_entries(step) * step.dim


def exponentials(step: Step) -> int:
    """Of one rank, at the least: one for each pair."""
    return step.anchors * (entries(step) + _batch_entries(step))


def read_bytes(step: Step) -> int:
    """Of one rank, at the least: what it holds of the bank's entries, once."""
    own = entries(step) // step.ranks if step.sharded else entries(step)
    return own * step.dim * step.bank_bytes


def messages(step: Step) -> list[Message]:
    """In the order in which a step sends them."""
    if step.ranks == 1:
        return []
    vectors = step.anchors * step.dim
    anchors = vectors * step.anchor_bytes + step.anchors * LABEL_BYTES
    found: list[tuple[str, str, int]] = []
    if step.gather or step.sharded:
        found.append(("sizes of the batch", "all-gather", SIZES_BYTES))
    if step.gather:
        found.append(("anchors", "all-gather", anchors))
    if step.sharded:
        sums = (vectors + step.anchors) * step.sum_bytes
        found += [
            ("anchors, to the shards", "all-gather", anchors),
            ("parts of the denominators", "all-to-all", sums),
            ("Z", "all-gather", step.anchors * step.sum_bytes + COUNT_BYTES),
            (
                "parts of the positives",
                "all-to-all",
                sums + step.anchors * (step.sum_bytes + COUNT_BYTES),
            ),
        ]
    if step.gather:
        found.append(("for the mean", "all-gather", MEAN_BYTES))
    found += [
        ("sizes of the update", "all-gather", SIZES_BYTES),
        ("new entries", "all-gather", new_entries_bytes(step)),
    ]
    if step.gather:
        found.append(("gradient of the anchors", "all-to-all", vectors * step.anchor_bytes))
    return [Message(what, collective, _aligned(parcel)) for what, collective, parcel in found]


def new_entries_bytes(step: Step) -> int:
    """Of one rank: room for every class of every image, whether it is there or not."""
    groups = step.images * step.num_classes
    of_group = 0
    if step.region_slots:
        of_group += step.dim * step.bank_bytes + COUNT_BYTES
    if step.pixel_slots:
        of_group += step.pixels_per_image * step.dim * step.bank_bytes + COUNT_BYTES
    return groups * of_group


def received_bytes(step: Step) -> int:
    """What comes to one rank from all others in a step."""
    return (step.ranks - 1) * sum(message.parcel for message in messages(step))


def _batch_entries(step: Step) -> int:
    return step.anchors * (step.ranks if step.gather else 1)


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT
