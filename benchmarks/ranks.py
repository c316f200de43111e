"""Several ranks on one machine: ratios of times, counts, and memory.

    python -m benchmarks.ranks
    python -m benchmarks.ranks --ranks 1 2 --repeats 5

Ranks are processes on gloo with one thread each, which share the processors of the machine, so the
results do not show how fast ranks on machines of their own are. Each run alternates between the
loss with a whole bank and with a sharded bank of the same total size, at three sizes; times are
kept as ratios. Messages, flops of the products, bytes of the banks and resident memory do not
depend on the speed of the machine.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import look_at_machine, write_record
from benchmarks._ranks.costs import Step, bank_bytes, bank_flops, batch_flops, messages, slots
from benchmarks._ranks.measurements import BASE, MEGABYTE, Row, measure, plan_of
from benchmarks._ranks.pool import Ranks


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the results, and write them to a JSON."""
    options = _parser().parse_args(arguments)
    environment = look_at_machine(options.refuse_busy)
    rows: dict[str, list[Row]] = {}
    for size in options.ranks:
        ranks = Ranks(size)
        try:
            found = ranks.run(measure, size, options.repeats)
        finally:
            ranks.close()
        for name, own in rows_of(size, found).items():
            rows.setdefault(name, []).extend(own)
            print(f"{name}, {size} ranks", *own, sep="\n")
    if options.out is not None:
        record = {"environment": environment, "base": asdict(BASE), **rows}
        write_record(options.out / "ranks.json", record)
        print(f"{options.out / 'ranks.json'} written")


def rows_of(ranks: int, found: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """Combine the measurements of all ranks to the rows of the record."""
    plan = plan_of(ranks)
    bank = {
        **_which(plan.bank),
        "slots": slots(plan.bank),
        "held": sum(one["bank"]["held"] for one in found),
        "computed_mb": bank_bytes(plan.bank) / MEGABYTE,
        "tensors_mb": max(one["bank"]["tensors_mb"] for one in found),
        "resident_mb": max(one["bank"]["resident_mb"] for one in found),
    }
    rows: dict[str, list[Row]] = {"banks": [bank], "losses": [], "flops": [], "messages": []}
    for index, step in enumerate(plan.losses):
        extra = max(one["extra_mb"][index] for one in found)
        rows["losses"].append({**_which(step), "slots": slots(step), "extra_mb": extra})
    for index, step in enumerate(plan.kinds):
        flops = {"bank": bank_flops(step), "batch": batch_flops(step)}
        counted = [one["flops"][index] for one in found]
        rows["flops"].append({**_which(step), **flops, "counted": counted})
        computed = [[message.collective, message.parcel] for message in messages(step)]
        alike = all(size == computed for one in found for size in one["messages"][index])
        rows["messages"].append({**_which(step), "computed": computed, "as_computed": alike})
    return {**rows, "times": found[0]["times"]}


def _which(step: Step) -> Row:
    return {"ranks": step.ranks, "sharded": step.sharded, "gather": step.gather}


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("ranks", __doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="W", help="numbers of ranks")
    add("--repeats", type=int, default=9, metavar="N", help="samples of each implementation")
    add("--refuse-busy", action="store_true", help="exit if the machine is busy")
    add("--out", type=Path, metavar="FOLDER", help="folder for the results")
    return parser


if __name__ == "__main__":
    main()
