"""What one rank measures of its loss and bank: times and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import distributed

from benchmarks._measure.device import measured_peak
from benchmarks._measure.timers import measure as measure_times
from benchmarks._ranks import costs
from benchmarks._ranks.costs import Step, entries
from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler

Row = dict[str, Any]

MEGABYTE = 1 << 20
SIDE = 16
"""Height and width of the embedding map."""
BASE = Step(ranks=1, images=2, anchors=128, dim=64, num_classes=8, pixels_per_image=4,
            pixel_slots=2048, region_slots=0, gather=False)  # fmt: skip
GROWTH = (1, 2, 4)
"""Sizes of the bank whose times are compared, relative to `BASE`, in all ranks together."""
WEIGHED = (16, 32, 64)
"""Sizes whose memory is measured: there tiles of positives no longer grow with a class."""
MERGE: dict[str, Callable[[Iterable[Any]], Any]] = {
    "held": sum,
    "tensors_mb": max,
    "resident_mb": max,
    "extra_mb": max,
}
"""How the figures of all ranks make one."""


def step_of(ranks: int, growth: int, *, sharded: bool) -> Step:
    """Return `BASE` on several ranks, with `growth` times its slots in all ranks together."""
    whole = growth * BASE.pixel_slots
    own = whole // ranks if sharded else whole
    return replace(BASE, ranks=ranks, pixel_slots=own, sharded=sharded)


def bank_of(
    step: Step, dtype: torch.dtype = torch.float32, process_group: Any = None
) -> MemoryBank:
    """Make the empty bank of a step; of a sharded one, the shard of this rank."""
    return MemoryBank(
        step.num_classes,
        step.dim,
        pixel_slots=step.pixel_slots,
        region_slots=step.region_slots,
        pixels_per_image=step.pixels_per_image,
        dtype=dtype,
        sharded=step.sharded,
        process_group=process_group,
    )


def full_bank(step: Step) -> MemoryBank:
    """Make a bank that is full of random unit vectors."""
    bank = bank_of(step)
    for of_class in bank.pixels:
        torch.nn.functional.normalize(torch.randn(of_class.shape), dim=1, out=of_class)
    bank.pixel_count.fill_(step.pixel_slots)
    return bank


class Case:
    """Forward and backward of a loss with a full bank, which does not change."""

    def __init__(self, step: Step) -> None:
        self.loss = PixelContrastLoss(
            anchor_sampler=RandomAnchorSampler(max_anchors=step.anchors),
            bank=full_bank(step),
            contrast_with=("pixels",),
            update_bank=False,
        )
        self.emb = torch.randn(step.images, step.dim, SIDE, SIDE, requires_grad=True)
        self.labels = torch.randint(0, step.num_classes, (step.images, SIDE, SIDE))

    def __call__(self) -> None:
        """Compute the loss and the gradient of the embeddings."""
        torch.autograd.grad(self.loss(self.emb, self.labels), self.emb)

    def together(self) -> None:
        """Run between two barriers, so that all ranks measure the same time."""
        distributed.barrier()
        self()
        distributed.barrier()


def measure(group: Any, rank: int, ranks: int, repeats: int) -> dict[str, list[Row]]:
    """Measure everything on this rank: a large bank, and losses. All ranks call it together."""
    sharded = ranks > 1
    large = replace(BASE, pixel_slots=8 * BASE.pixel_slots, ranks=ranks, sharded=sharded)
    rows: dict[str, list[Row]] = {"banks": [{**_which(large), **weigh_bank(large)}]}
    rows["losses"] = [
        {**_which(step), "slots": costs.slots(step), "extra_mb": weigh_loss(step)}
        for step in (step_of(ranks, growth, sharded=sharded) for growth in WEIGHED)
    ]
    return {**rows, "times": time_losses(ranks, repeats)}


def merged(found: list[dict[str, list[Row]]]) -> dict[str, list[Row]]:
    """Combine the rows of all ranks; what `MERGE` does not name is that of the first rank."""
    rows: dict[str, list[Row]] = {name: [] for name in found[0]}
    for name in rows:
        for of_ranks in zip(*(one[name] for one in found), strict=True):
            row = dict(of_ranks[0])
            for key in row.keys() & MERGE.keys():
                row[key] = MERGE[key](one[key] for one in of_ranks)
            rows[name].append(row)
    return rows


def _which(step: Step) -> Row:
    return {"ranks": step.ranks, "sharded": step.sharded}


def time_losses(ranks: int, repeats: int) -> list[Row]:
    """Measure times of the loss in turn; returns their ratios."""
    kinds = (False, True) if ranks > 1 else (False,)
    steps = [step_of(ranks, growth, sharded=sharded) for growth in GROWTH for sharded in kinds]
    runs: dict[str, Callable[[], object]] = {
        str(number): Case(step).together for number, step in enumerate(steps)
    }
    measured = list(measure_times(runs, repeats, strict=True).values())
    kinds_of = [(step.sharded, entries(step)) for step in steps]
    medians = dict(zip(kinds_of, (one["seconds"] for one in measured), strict=True))
    return [
        {
            "ranks": ranks,
            "sharded": sharded,
            "entries": size,
            "to_whole": one["seconds"] / medians[False, size],
            "spread": one["spread"],
        }
        for (sharded, size), one in zip(kinds_of, measured, strict=True)
    ]


def weigh_bank(step: Step) -> Row:
    """Measure a full bank: its entries, and its size in tensors and in resident memory."""
    full_bank(replace(step, pixel_slots=16))  # libraries allocate on their first call
    kept: list[MemoryBank] = []
    resident = measured_peak(lambda: kept.append(full_bank(step)))
    (bank,) = kept
    sizes = [buffer.untyped_storage().nbytes() for buffer in bank.buffers()]
    return {
        "slots": costs.slots(step),
        "held": int(bank.pixel_count.sum()),
        "computed_mb": costs.bank_bytes(step) / MEGABYTE,
        "tensors_mb": sum(sizes) / MEGABYTE,
        "resident_mb": resident,
    }


def weigh_loss(step: Step) -> float:
    """Measure the MB that a step needs beyond its bank and inputs."""
    Case(replace(step, pixel_slots=16))()
    case = Case(step)
    return statistics.median(measured_peak(case) for _ in range(3))
