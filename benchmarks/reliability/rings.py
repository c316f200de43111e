"""Whether a bank holds what it should, compared with rings in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.plain import expect, flat, regions_of, rounding_of

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


def check_bank(state: State) -> None:
    """Check what holds for every bank: the range of its counts, and unit length."""
    for queue in ("pixel", "region"):
        count, held = state[f"{queue}_count"], state[f"{queue}s"]
        in_range = bool(((count >= 0) & (count <= held.shape[1])).all())
        expect(in_range, "a count of the bank is out of its range")
        written = held[torch.arange(held.shape[1]) < count[:, None]].double()
        unit = bool(((written.norm(dim=1) - 1).abs() < 2**-7).all())
        expect(unit, "a vector of the bank is not of unit length")


def check_rings(
    before: State,
    after: State,
    batches: Iterable[Batch],
    ignore: int,
    pixels_per_image: int,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Compare two states of a bank, or of one shard (rank, size) of it.

    Args:
        batches: those of all ranks, in rank order, of which the bank takes its entries.
        ignore, pixels_per_image: options of the bank.
    """
    num_classes = len(before["pixels"])
    new: dict[tuple[str, int], list[Candidates]] = defaultdict(list)
    for emb, labels in batches:
        off = (emb.shape[1] + 8) * rounding_of(emb.dtype)
        for one in regions_of(emb, flat(labels, emb), ignore):
            if len(one.pixels):
                number = min(pixels_per_image, len(one.pixels))
                new["pixel", one.label].append(Candidates(one.pixels, number, off))
            if one.mean is not None:
                new["region", one.label].append(Candidates(one.mean[None], 1, one.off))
            elif one.off == torch.inf:
                new["region", one.label].append(Candidates(torch.zeros(0), 0, one.off))
    for queue in ("pixel", "region"):
        for label in range(num_classes if before[f"{queue}s"].shape[1] else 0):
            candidates = new[queue, label]
            if all(one.off < torch.inf for one in candidates):
                was, now = (
                    {name: state[f"{queue}{name}"][label] for name in ("s", "_count", "_next")}
                    for state in (before, after)
                )
                _check_ring(was, now, candidates, shard, f" ({queue}s)")


def _check_ring(
    before: State, after: State, new: list[Candidates], shard: tuple[int, int], which: str
) -> None:
    rank, size = shard
    slots, following, count = len(before["s"]), int(before["_next"]), int(before["_count"])
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
