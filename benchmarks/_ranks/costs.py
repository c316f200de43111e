"""What a training step on several ranks costs, computed: the formulas of docs/scale.md.

All sizes are those of one rank. A test compares `messages` with the messages of real steps;
`benchmarks.ranks` measures memory and time on a single machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LABEL_BYTES = 8
COUNT_BYTES = 8
FLAG_BYTES = 1
SIZES_BYTES = 32
"""Size of the message that precedes all data: the call, and three integers."""
MEAN_BYTES = 16
"""Two float64: the sum of a rank's weights, and the largest of them."""
ALIGNMENT = 8


@dataclass(frozen=True)
class Step:
    """A step of `PixelContrastLoss` against batch and bank, on each of several ranks.

    W ranks have B images and K anchors each, including padding. Slots are those of a class on one
    rank; `..._bytes` is the size of a number in an anchor, a stored vector or a partial sum.
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


class Message(NamedTuple):
    """What a collective operation sends, its kind, and the bytes from one rank to one other."""

    what: str
    collective: str
    parcel: int


def slots(step: Step) -> int:
    """Count the slots of all classes and both queues."""
    return step.num_classes * (step.pixel_slots + step.region_slots)


def bank_bytes(step: Step) -> int:
    """Compute the size of the bank's vectors."""
    return slots(step) * step.dim * step.bank_bytes


def messages(step: Step) -> list[Message]:
    """List the messages in the order in which a step sends them."""
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
        counts = step.anchors * (step.sum_bytes + COUNT_BYTES)
        found += [
            ("anchors, to the shards", "all-gather", anchors),
            ("parts of the denominators", "all-to-all", sums),
            ("Z", "all-gather", step.anchors * step.sum_bytes + COUNT_BYTES),
            ("parts of the positives", "all-to-all", sums + counts),
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
    """Compute the size of new entries: every class of every image, whether present or not."""
    of_group = 0
    if step.region_slots:
        of_group += step.dim * step.bank_bytes + FLAG_BYTES
    if step.pixel_slots:
        of_group += step.pixels_per_image * (step.dim * step.bank_bytes + FLAG_BYTES)
    return step.images * step.num_classes * of_group


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT
