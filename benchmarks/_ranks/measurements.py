"""What one rank measures of its loss and bank: times, flops, messages and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from benchmarks._measure.memory import measured_peak
from benchmarks._measure.product_flops import ProductFlops
from benchmarks._measure.timers import measure as measure_times
from benchmarks._ranks.costs import Step, entries
from benchmarks._ranks.messages import counted_messages
from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler

Row = dict[str, Any]

MEGABYTE = 1 << 20
SIDE = 16
"""Height and width of the embedding map."""
BASE = Step(
    ranks=1,
    images=2,
    anchors=128,
    dim=64,
    num_classes=8,
    pixels_per_image=4,
    pixel_slots=2048,
    region_slots=0,
    gather=False,
)
GROWTH = (1, 2, 4)
"""Sizes of the bank whose times are compared, relative to `BASE`, in all ranks together."""
WEIGHED = (16, 32, 64)
"""Sizes whose memory is measured: there tiles of positives no longer grow with a class."""


class Plan(NamedTuple):
    """The steps that are measured with a number of ranks."""

    bank: Step
    losses: list[Step]
    kinds: list[Step]


def plan_of(ranks: int) -> Plan:
    """List the steps: a large bank, losses of several sizes, and each kind of gathering."""
    sharded = ranks > 1
    kinds = [(False, False), (False, True), (True, True)] if ranks > 1 else [(False, False)]
    return Plan(
        replace(BASE, pixel_slots=8 * BASE.pixel_slots, ranks=ranks, sharded=sharded),
        [step_of(ranks, growth, sharded=sharded) for growth in WEIGHED],
        [step_of(ranks, 1, sharded=shards, gather=gather) for shards, gather in kinds],
    )


def step_of(ranks: int, growth: int, *, sharded: bool, gather: bool = False) -> Step:
    """Return `BASE` on several ranks, with `growth` times its slots in all ranks together."""
    whole = growth * BASE.pixel_slots
    own = whole // ranks if sharded else whole
    return replace(BASE, ranks=ranks, pixel_slots=own, sharded=sharded, gather=gather)


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
    """Forward and backward of a loss with a full bank, which does not change unless asked."""

    def __init__(self, step: Step, sources: tuple[str, ...], update_bank: bool = False) -> None:
        self.loss = PixelContrastLoss(
            anchor_sampler=RandomAnchorSampler(max_anchors=step.anchors),
            bank=full_bank(step),
            contrast_with=sources,
            gather=step.gather,
            update_bank=update_bank,
        )
        self.emb = torch.randn(step.images, step.dim, SIDE, SIDE, requires_grad=True)
        self.labels = torch.randint(0, step.num_classes, (step.images, SIDE, SIDE))

    def __call__(self) -> Tensor:
        """Return the gradient of the embeddings."""
        (gradient,) = torch.autograd.grad(self.loss(self.emb, self.labels), self.emb)
        return gradient

    def together(self) -> None:
        """Run between two barriers, so that all ranks measure the same time."""
        distributed.barrier()
        self()
        distributed.barrier()


def measure(group: Any, rank: int, ranks: int, repeats: int) -> dict[str, Any]:
    """Measure everything on this rank; all ranks call it together."""
    plan = plan_of(ranks)
    return {
        "bank": weigh_bank(plan.bank),
        "extra_mb": [weigh_loss(step) for step in plan.losses],
        "flops": [count_flops(step) for step in plan.kinds],
        "messages": [[count_messages(size) for size in (step, larger(step))]
                     for step in plan.kinds],
        "times": time_losses(ranks, repeats),
    }  # fmt: skip


def time_losses(ranks: int, repeats: int) -> list[Row]:
    """Measure times of the loss in turn; returns their ratios."""
    steps = [
        step_of(ranks, growth, sharded=sharded)
        for growth in GROWTH
        for sharded in ((False, True) if ranks > 1 else (False,))
    ]
    runs: dict[str, Callable[[], object]] = {
        str(number): Case(step, ("pixels",)).together for number, step in enumerate(steps)
    }
    measured = list(measure_times(runs, repeats, strict=True).values())
    medians = {
        (step.sharded, entries(step)): one["seconds"]
        for step, one in zip(steps, measured, strict=True)
    }
    smallest = entries(steps[0])
    return [
        {
            "ranks": ranks,
            "sharded": step.sharded,
            "entries": entries(step),
            "to_whole": one["seconds"] / medians[False, entries(step)],
            "to_smallest": one["seconds"] / medians[step.sharded, smallest],
            "spread": one["spread"],
        }
        for step, one in zip(steps, measured, strict=True)
    ]


def count_flops(step: Step) -> int:
    """Count the flops of the products in one step."""
    case = Case(step, ("batch", "pixels"))
    with ProductFlops() as products:
        case()
    return int(products.flops)


def count_messages(step: Step) -> list[list[Any]]:
    """List kind and size of the collectives of one step."""
    case = Case(step, ("batch", "pixels"), update_bank=True)
    with counted_messages(step.ranks) as found:
        case()
    return [[message.collective, message.parcel] for message in found]


def larger(step: Step) -> Step:
    """Return the step with a larger bank."""
    return replace(step, pixel_slots=GROWTH[-1] * step.pixel_slots)


def weigh_bank(step: Step) -> Row:
    """Measure a full bank: its entries, and its size in tensors and in resident memory."""
    full_bank(replace(step, pixel_slots=16))  # libraries allocate on their first call
    kept: list[MemoryBank] = []
    resident = measured_peak(lambda: kept.append(full_bank(step)))
    (bank,) = kept
    sizes = [buffer.untyped_storage().nbytes() for buffer in bank.buffers()]
    held = int(bank.pixel_count.sum())
    return {"held": held, "tensors_mb": sum(sizes) / MEGABYTE, "resident_mb": resident}


def weigh_loss(step: Step) -> float:
    """Measure the MB that a step needs beyond its bank and inputs."""
    Case(replace(step, pixel_slots=16), ("pixels",))()
    case = Case(step, ("pixels",))
    return statistics.median(measured_peak(case) for _ in range(3))
