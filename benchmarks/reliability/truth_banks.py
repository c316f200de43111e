"""Whether a bank holds what it should, compared with rings in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.truth_pixels import directions, expect, flat, pixels_of, regions_of
from pixcontrast import MemoryBank

Batch = tuple[Tensor, Tensor]
"""An embedding and its labels, as `bank.update` takes them."""
State = Mapping[str, Tensor]


class Candidates(NamedTuple):
    """Vectors of one image and class, `number` of which a queue takes.

    Rounding may decide whether a region exists. Then `off` is infinite, and the ring of its class
    cannot be predicted.
    """

    vectors: Tensor
    number: int
    off: float


def check_bank(bank: MemoryBank) -> None:
    """Check what holds for every bank: the range of its counts, and unit length."""
    for queue in ("pixels", "regions"):
        count, held = bank.count(queue), getattr(bank, queue)
        in_range = bool(((count >= 0) & (count <= bank.slots(queue))).all())
        expect(in_range, "a count of the bank is out of its range")
        written = held[torch.arange(held.shape[1]) < count[:, None]].double()
        unit = bool(((written.norm(dim=1) - 1).abs() < 2**-7).all())
        expect(unit, "a vector of the bank is not of unit length")


def check_writes(bank: MemoryBank, before: State, emb: Tensor, labels: Tensor) -> None:
    """Compare a bank after an update with what the batch should have written."""
    check_rings(bank, bank.state_dict(), before, [(emb, labels)])


def check_rings(
    bank: MemoryBank,
    after: State,
    before: State,
    batches: Iterable[Batch],
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Compare two states of a bank, or of one shard (rank, size) of it.

    Args:
        bank: its options apply; its content does not.
        batches: those of all ranks, in rank order.
    """
    new: dict[str, dict[int, list[Candidates]]] = {
        "pixel": defaultdict(list),
        "region": defaultdict(list),
    }
    for emb, labels in batches:
        _add_pixels(new["pixel"], bank, emb, labels)
        _add_regions(new["region"], bank, emb, labels)
    for queue, of_classes in new.items():
        slots = bank.slots(f"{queue}s")
        for label in range(bank.num_classes if slots else 0):
            if all(candidates.off < torch.inf for candidates in of_classes[label]):
                was, now = (
                    {name: state[f"{queue}{name}"][label] for name in ("s", "_count", "_next")}
                    for state in (before, after)
                )
                _check_ring(was, now, of_classes[label], slots, shard, f" ({queue}s)")


def _check_ring(
    before: State,
    after: State,
    new: list[Candidates],
    slots: int,
    shard: tuple[int, int],
    which: str,
) -> None:
    rank, size = shard
    following, count = int(before["_next"]), int(before["_count"])
    writer: dict[int, int] = {}
    for index, candidates in enumerate(new):
        for _ in range(candidates.number):
            if following % size == rank:
                writer[following // size] = index
                count = max(count, following // size + 1)
            following = (following + 1) % (slots * size)
    same = (int(after["_count"]), int(after["_next"])) == (count, following)
    expect(same, f"the bank took another number{which}")
    kept = [slot for slot in range(slots) if slot not in writer]
    same = torch.equal(after["s"][kept], before["s"][kept])
    expect(same, f"a slot of the bank that was not written has changed{which}")
    for index, candidates in enumerate(new):
        found = after["s"][[slot for slot, by in writer.items() if by == index]]
        among = _are_among(found, candidates)
        expect(among, f"what the bank took is not of this image and class{which}")


def _are_among(found: Tensor, candidates: Candidates) -> bool:
    """Return whether the vectors are distinct candidates, up to rounding: a bipartite matching."""
    if len(found) == 0:
        return True
    allowed = candidates.off + torch.finfo(found.dtype).eps
    apart = (found.double()[:, None] - candidates.vectors).abs().amax(dim=2)
    fits = (apart <= allowed).tolist()
    taken: dict[int, int] = {}  # candidate -> vector

    def match(vector: int, tried: set[int]) -> bool:
        for candidate, fit in enumerate(fits[vector]):
            if fit and candidate not in tried:
                tried.add(candidate)
                if candidate not in taken or match(taken[candidate], tried):
                    taken[candidate] = vector
                    return True
        return False

    return all(match(vector, set()) for vector in range(len(found)))


def _add_pixels(
    new: dict[int, list[Candidates]], bank: MemoryBank, emb: Tensor, labels: Tensor
) -> None:
    unit, usable = directions(pixels_of(emb))
    eps = torch.finfo(torch.promote_types(emb.dtype, torch.float32)).eps
    off = (unit.shape[2] + 8) * eps
    for image, own in enumerate(flat(labels, emb).to(torch.int64)):
        for label in range(bank.num_classes):
            members = unit[image][(own == label) & usable[image]]
            if len(members) and label != bank.ignore_index:
                number = min(bank.pixels_per_image, len(members))
                new[label].append(Candidates(members, number, off))


def _add_regions(
    new: dict[int, list[Candidates]], bank: MemoryBank, emb: Tensor, labels: Tensor
) -> None:
    for region in regions_of(emb, flat(labels, emb), bank.ignore_index):
        if region.mean is not None:
            new[region.label].append(Candidates(region.mean[None], 1, region.off))
        elif region.off == torch.inf:
            new[region.label].append(Candidates(torch.zeros(0), 0, region.off))
