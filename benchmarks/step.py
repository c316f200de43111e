"""What a training step pays for the contrast, beside the authors' step, and where it goes.

    python -m benchmarks.step
    python -m benchmarks.step --shapes coco-stuff --cases bank --repeats 3

A step starts from what the network gives (unit embeddings, logits) and the labels, and ends with
the gradient of the embeddings and the batch in the bank: labels brought to size, predictions,
sampling, loss, bank update, backward. The way "loss" is `info_nce` forward and backward alone, on
the anchors and entries of that step. Ways are timed in turn within one run; memory is what one
step needs beyond its inputs and its bank, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import gpu_step
from benchmarks.batches import SHAPES
from benchmarks.sampler_timing import measure_samplers, sampler_table
from benchmarks.script import (
    add_run_options,
    cell,
    look_at_machine,
    set_threads,
    split_device,
    write_record,
)
from benchmarks.step_ways import CASES, PARTS, WAYS, Case
from benchmarks.timing import CPU, alternate, measured_peak, peak_memory, summarise

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Time and weigh the steps, their parts and the sampler: tables and a JSON."""
    device, rest = split_device(arguments)
    if device == "cuda":
        raise SystemExit(gpu_step.main(rest))
    options = _parser().parse_args(arguments)
    set_threads(options.threads)
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options)))
        return
    environment = look_at_machine(options.refuse_busy)
    chosen = [(name, case) for name in options.shapes for case in options.cases]
    steps: list[Row] = []
    samplers: list[Row] = []
    for name, case in tqdm(chosen, leave=False, disable=None):
        if case == "sampler":
            samplers += measure_samplers(name, options.repeats, CPU)
        else:
            steps.append(_measure_step(name, case, options))
    if steps:
        print(f"{_step_table(steps)}\n\n{_parts_table(steps)}\n")
    if samplers:
        print(f"{sampler_table(samplers)}\n")
    if options.out is not None:
        path = options.out / "step.json"
        record = {"environment": environment, "steps": steps, "samplers": samplers}
        write_record(path, record)
        print(f"{path} written")


def _measure_step(name: str, case: str, options: argparse.Namespace) -> Row:
    torch.manual_seed(0)
    problem = Case(SHAPES[name], case, CPU)
    runs = {way: problem.way(way) for way in problem.ways()}
    measured = summarise(alternate(runs, options.repeats), ("step", "loss"))
    # Their banks and queues are not needed any more; the processes below have their own.
    runs.clear()
    for way, one in measured.items():
        one["extra_mb"] = _peak(way, name, case) if options.memory else None
    clock = problem.clock_parts()
    clock()
    clocked = [clock() for _ in range(options.repeats)]
    return {
        "name": name,
        "case": case,
        "shape": asdict(problem.shape),
        "anchors": problem.anchors(),
        "measured": measured,
        "parts": {part: statistics.median(one[part] for one in clocked) for part in PARTS},
    }


def _peak(way: str, name: str, case: str) -> float | None:
    return peak_memory("benchmarks.step", "--peak", way, "--shapes", name, "--cases", case)


def _peak_of_one(options: argparse.Namespace) -> float:
    way, case = options.peak, options.cases[0]
    # First on a tiny batch: threads and libraries are not the run's own.
    Case(SHAPES["small"], case, CPU).way(way)()
    return measured_peak(Case(SHAPES[options.shapes[0]], case, CPU).way(way))


def _step_table(rows: list[Row]) -> str:
    lines: list[str] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        lines += [
            f"{name}: {SHAPES[name]}",
            f"{'case':<8}{'way':<10}{'ms':>9}{'x step':>8}{'x loss':>8}{'spread':>8}"
            f"{'extra MB':>10}{'anchors':>9}",
        ]
        for row in (row for row in rows if row["name"] == name):
            case = row["case"]
            for way, one in row["measured"].items():
                lines.append(
                    f"{case:<8}{way:<10}{1000 * one['seconds']:>9.0f}{one['to_step']:>8.2f}"
                    f"{one['to_loss']:>8.2f}{one['spread']:>8.2f}{cell(one['extra_mb'], 10, 0)}"
                    f"{row['anchors']['authors' if way == 'authors' else 'step']:>9}"
                )
                case = ""
    return "\n".join(lines)


def _parts_table(rows: list[Row]) -> str:
    lines = [f"{'where our step goes':<24}{'part':<26}{'ms':>9}{'share':>8}"]
    for row in rows:
        title = f"{row['name']}, {row['case']}"
        whole = sum(row["parts"].values())
        for part, seconds in row["parts"].items():
            if seconds == 0.0:  # no bank
                continue
            lines.append(f"{title:<24}{part:<26}{1000 * seconds:>9.1f}{seconds / whole:>8.0%}")
            title = ""
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names, cases = ["cityscapes", "coco-stuff"], [*CASES, "sampler"]
    add("--shapes", nargs="+", choices=list(SHAPES), default=names, metavar="NAME")
    add("--cases", nargs="+", choices=cases, default=cases, metavar="CASE")
    add_run_options(parser, repeats=5)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see --device cuda --help")
    add("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
