"""Whether a bank holds what it should: against rings in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.reliability.truth_pixels import directions, flat, pixels_of, regions_of
from pixcontrast.bank import MemoryBank

QUEUES = ("pixel", "region")
Batch = tuple[Tensor, Tensor]
"""An embedding and its labels, as `bank.update` takes them."""


class Candidates:
    """What one image has for a class of a queue: as many of these vectors as are taken.

    A region that may or may not be there, by rounding, leaves its class unknown from there on.
    """

    def __init__(self, vectors: Tensor, number: int, off: float) -> None:
        self.vectors, self.number, self.off = vectors, number, off


def wrong_bank(bank: MemoryBank) -> str | None:
    """What no bank may hold."""
    for queue in ("pixels", "regions"):
        count, held = bank.count(queue), getattr(bank, queue)
        if bool(((count < 0) | (count > bank.slots(queue))).any()):
            return "a count of the bank is out of its range"
        written = held[torch.arange(held.shape[1]) < count[:, None]].double()
        if written.numel() and not bool(((written.norm(dim=1) - 1).abs() < 2**-7).all()):
            return "a vector of the bank is not of unit length"
    return None


def wrong_writes(
    bank: MemoryBank, before: Mapping[str, Tensor], emb: Tensor, labels: Tensor
) -> str | None:
    """What is wrong with a bank that has taken in a batch, or None."""
    return wrong_rings(bank, bank.state_dict(), before, [(emb, labels)])


def wrong_rings(
    bank: MemoryBank,
    after: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    batches: list[Batch],
    shard: tuple[int, int] = (0, 1),
) -> str | None:
    """The same of the batches of all ranks, in rank order, and of one shard of the rings."""
    for queue in QUEUES:
        slots = bank.slots(f"{queue}s")
        if slots == 0:
            continue
        new = _pixels(bank, batches) if queue == "pixel" else _regions(bank, batches)
        for label in range(bank.num_classes):
            if any(candidates.off == torch.inf for candidates in new[label]):
                continue  # whether there is one more is a matter of rounding
            rings = [
                {name: state[f"{queue}{name}"][label] for name in ("s", "_count", "_next")}
                for state in (before, after)
            ]
            wrong = _wrong_ring(rings[0], rings[1], new[label], slots, shard)
            if wrong is not None:
                return f"{wrong} ({queue}s)"
    return None


def _wrong_ring(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    new: list[Candidates],
    slots: int,
    shard: tuple[int, int],
) -> str | None:
    rank, size = shard
    place, count = int(before["_next"]), int(before["_count"])
    written: dict[int, Candidates] = {}
    for candidates in new:
        for _ in range(candidates.number):
            if place % size == rank:
                written[place // size] = candidates
                count = max(count, place // size + 1)
            place = (place + 1) % (slots * size)
    if (int(after["_count"]), int(after["_next"])) != (count, place):
        return "the bank took another number"
    kept = [slot for slot in range(slots) if slot not in written]
    if not torch.equal(after["s"][kept], before["s"][kept]):
        return "a slot of the bank that was not written has changed"
    slots_of: dict[int, list[int]] = defaultdict(list)
    for slot, candidates in written.items():
        slots_of[id(candidates)].append(slot)
    for candidates in new:
        if not _are_among(after["s"][slots_of[id(candidates)]], candidates):
            return "what the bank took is not of this image and class"
    return None


def _are_among(found: Tensor, candidates: Candidates) -> bool:
    """Whether vectors are, but for rounding, as many different ones of the candidates."""
    if len(found) == 0:
        return True
    allowed = candidates.off + torch.finfo(found.dtype).eps
    apart = (found.double()[:, None] - candidates.vectors).abs().amax(dim=2)
    free = [list(row) for row in (apart <= allowed).tolist()]
    taken: dict[int, int] = {}  # which vector has which candidate

    def place(number: int, tried: set[int]) -> bool:
        for other, fits in enumerate(free[number]):
            if fits and other not in tried:
                tried.add(other)
                if other not in taken or place(taken[other], tried):
                    taken[other] = number
                    return True
        return False

    return all(place(number, set()) for number in range(len(found)))


def _pixels(bank: MemoryBank, batches: list[Batch]) -> dict[int, list[Candidates]]:
    """By class, what each image has."""
    new: dict[int, list[Candidates]] = defaultdict(list)
    for emb, labels in batches:
        unit, usable = directions(pixels_of(emb))
        off = _rounding(emb)
        for image, own in enumerate(flat(labels, emb).to(torch.int64)):
            for label in range(bank.num_classes):
                members = unit[image][(own == label) & usable[image]]
                if len(members) and label != bank.ignore_index:
                    number = min(bank.pixels_per_image, len(members))
                    new[label].append(Candidates(members, number, off))
    return new


def _regions(bank: MemoryBank, batches: list[Batch]) -> dict[int, list[Candidates]]:
    new: dict[int, list[Candidates]] = defaultdict(list)
    for emb, labels in batches:
        for region in regions_of(emb, flat(labels, emb), bank.ignore_index):
            if region.off == torch.inf:
                new[region.label].append(Candidates(torch.zeros(0), 0, region.off))
            elif region.mean is not None:
                new[region.label].append(Candidates(region.mean[None], 1, region.off))
    return new


def _rounding(emb: Tensor) -> float:
    eps = torch.finfo(torch.promote_types(emb.dtype, torch.float32)).eps
    return (pixels_of(emb).shape[2] + 8) * eps
