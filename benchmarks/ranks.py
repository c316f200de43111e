"""What can be measured of several ranks on a machine that has few processors: ratios and counts.

    python -m benchmarks.ranks
    python -m benchmarks.ranks --ranks 1 2 --repeats 5

Ranks are processes on gloo, one thread each, that share the processors there are, so that nothing
is said of how fast more of them would be on machines of their own. In each run, in turn: the loss
against a bank that every rank holds whole, and against one in shards with as many slots in all, at
three sizes. Beside that what does not depend on the machine: messages, flops of the products that
are made, bytes of the banks, and resident memory. Times are kept as ratios alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from benchmarks.costs import (
    Step,
    bank_bytes,
    bank_flops,
    batch_flops,
    entries,
    messages,
    slots,
)
from benchmarks.product_flops import ProductFlops
from benchmarks.rank_messages import counted_messages
from benchmarks.rank_processes import on_ranks
from benchmarks.script import look_at_machine, write_record
from benchmarks.timing import alternate, measured_peak, spread
from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler

Row = dict[str, Any]

MEGABYTE = 1 << 20
SIDE = 16
"""Of the embedding map."""
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
"""How many times the slots of `BASE` a bank has in all."""
WEIGHED = (16, 32, 64)
"""The same, where memory is weighed: tiles of positives no longer grow with a class."""


class Case:
    """Loss, forward and backward, against a full bank; the bank does not change."""

    def __init__(self, step: Step, contrast: tuple[str, ...], update_bank: bool = False) -> None:
        self.bank = full_bank(step)
        self.loss = PixelContrastLoss(
            anchor_sampler=RandomAnchorSampler(max_anchors=step.anchors),
            bank=self.bank,
            contrast_with=contrast,
            gather=step.gather,
            update_bank=update_bank,
        )
        self.emb = torch.randn(step.images, step.dim, SIDE, SIDE, requires_grad=True)
        self.labels = torch.randint(0, step.num_classes, (step.images, SIDE, SIDE))

    def __call__(self) -> Tensor:
        """The gradient of the embeddings."""
        (gradient,) = torch.autograd.grad(self.loss(self.emb, self.labels), self.emb)
        return gradient


def bank_of(
    step: Step, dtype: torch.dtype = torch.float32, process_group: Any = None
) -> MemoryBank:
    """The bank of a step, with nothing in it; this rank's share of it where it is sharded."""
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
    """The same, full of random unit vectors."""
    bank = bank_of(step)
    for of_class in bank.pixels:
        torch.nn.functional.normalize(torch.randn(of_class.shape), dim=1, out=of_class)
    bank.pixel_count.fill_(step.pixel_slots)
    return bank


def of_size(ranks: int, growth: int, *, sharded: bool, gather: bool = False) -> Step:
    """`BASE` on some ranks, with `growth` times its slots in all."""
    whole = growth * BASE.pixel_slots
    own = whole // ranks if sharded else whole
    return replace(BASE, ranks=ranks, pixel_slots=own, sharded=sharded, gather=gather)


def time_losses(ranks: int, repeats: int) -> list[Row]:
    """Ratios of the loss's times, all cases in turn, each from and to a moment all ranks share."""
    runs: dict[str, Callable[[], object]] = {}
    steps: dict[str, Step] = {}
    for growth in GROWTH:
        for sharded in (False, True):
            step = of_size(ranks, growth, sharded=sharded)
            if ranks > 1 or not sharded:
                name = f"{sharded} {growth}"
                steps[name] = step
                runs[name] = _together(Case(step, ("pixels",)))
    seconds = alternate(runs, repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows: list[Row] = []
    for name, step in steps.items():
        of_kind, of_growth = name.split()
        rows.append(
            {
                "ranks": ranks,
                "sharded": step.sharded,
                "entries": entries(step),
                "to_whole": medians[name] / medians[f"False {of_growth}"],
                "to_smallest": medians[name] / medians[f"{of_kind} {GROWTH[0]}"],
                "spread": spread(seconds[name]),
            }
        )
    return rows


def count_flops(step: Step) -> int:
    """Of the products of one step, as they are made."""
    case = Case(step, ("batch", "pixels"))
    with ProductFlops() as products:
        case()
    return int(products.flops)


def count_messages(step: Step) -> list[list[Any]]:
    """Of one step: which collectives, and how large."""
    case = Case(step, ("batch", "pixels"), update_bank=True)
    with counted_messages(step.ranks) as found:
        case()
    return [[message.collective, message.parcel] for message in found]


def weigh_bank(step: Step) -> Row:
    """A full bank: how much there is of it, in bytes of tensors and of resident memory."""
    full_bank(replace(step, pixel_slots=16))  # what libraries take at first is not the bank's
    kept: list[MemoryBank] = []
    resident = measured_peak(lambda: kept.append(full_bank(step)))
    (bank,) = kept
    sizes = [buffer.untyped_storage().nbytes() for buffer in bank.buffers()]
    held = int(bank.pixel_count.sum())
    return {"held": held, "tensors_mb": sum(sizes) / MEGABYTE, "resident_mb": resident}


def weigh_loss(step: Step) -> float:
    """MB that a step needs beyond its bank and inputs."""
    Case(replace(step, pixel_slots=16), ("pixels",))()
    case = Case(step, ("pixels",))
    return statistics.median(measured_peak(case) for _ in range(3))


def measure(rank: int, ranks: int, repeats: int) -> dict[str, Any]:
    """All that a number of ranks has to say; called on each of them."""
    large = replace(BASE, pixel_slots=8 * BASE.pixel_slots, ranks=ranks, sharded=ranks > 1)
    sizes = [of_size(ranks, growth, sharded=ranks > 1) for growth in WEIGHED]
    kinds = [(False, False)]
    if ranks > 1:
        kinds += [(False, True), (True, True)]
    steps = [of_size(ranks, 1, sharded=sharded, gather=gather) for sharded, gather in kinds]
    return {
        "bank": weigh_bank(large),
        "extra_mb": [weigh_loss(step) for step in sizes],
        "flops": [count_flops(step) for step in steps],
        "messages": [[count_messages(size) for size in (step, _larger(step))] for step in steps],
        "times": time_losses(ranks, repeats),
        "steps": [asdict(step) for step in (large, *sizes, *steps)],
    }


def rows_of(found: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """What all ranks have measured, as the record has it."""
    large, *others = (Step(**step) for step in found[0]["steps"])
    sizes, steps = others[: len(WEIGHED)], others[len(WEIGHED) :]
    bank = {
        **_which(large),
        "slots": slots(large),
        "held": sum(one["bank"]["held"] for one in found),
        "computed_mb": bank_bytes(large) / MEGABYTE,
        "tensors_mb": max(one["bank"]["tensors_mb"] for one in found),
        "resident_mb": max(one["bank"]["resident_mb"] for one in found),
    }
    rows: dict[str, list[Row]] = {"banks": [bank], "losses": [], "flops": [], "messages": []}
    for number, step in enumerate(sizes):
        extra = max(one["extra_mb"][number] for one in found)
        rows["losses"].append({**_which(step), "slots": slots(step), "extra_mb": extra})
    for number, step in enumerate(steps):
        flops = {"bank": bank_flops(step), "batch": batch_flops(step)}
        counted = [one["flops"][number] for one in found]
        rows["flops"].append({**_which(step), **flops, "counted": counted})
        computed = [[message.collective, message.parcel] for message in messages(step)]
        as_computed = all(
            of_size == computed for one in found for of_size in one["messages"][number]
        )
        rows["messages"].append({**_which(step), "computed": computed, "as_computed": as_computed})
    return {**rows, "times": found[0]["times"]}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print what was found, and write it to a JSON."""
    options = _parser().parse_args(arguments)
    environment = look_at_machine(options.refuse_busy)
    rows: dict[str, list[Row]] = {}
    for ranks in options.ranks:
        for name, found in rows_of(on_ranks(ranks, measure, ranks, options.repeats)).items():
            rows.setdefault(name, []).extend(found)
            print(f"{name}, {ranks} ranks", *found, sep="\n")
    if options.out is not None:
        record = {"environment": environment, "base": asdict(BASE), **rows}
        write_record(options.out / "ranks.json", record)
        print(f"{options.out / 'ranks.json'} written")


def _together(case: Case) -> Callable[[], object]:
    def run() -> None:
        distributed.barrier()
        case()
        distributed.barrier()

    return run


def _larger(step: Step) -> Step:
    return replace(step, pixel_slots=GROWTH[-1] * step.pixel_slots)


def _which(step: Step) -> Row:
    return {"ranks": step.ranks, "sharded": step.sharded, "gather": step.gather}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="W", help="how many at a time")
    add("--repeats", type=int, default=9, metavar="N", help="runs of each way, in turn")
    add("--refuse-busy", action="store_true", help="do not run on a busy machine")
    add("--out", type=Path, metavar="FOLDER", help="for what is written")
    return parser


if __name__ == "__main__":
    main()
