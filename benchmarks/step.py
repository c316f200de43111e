"""What a training step pays for the contrast, beside the authors' step, and where it goes.

    python -m benchmarks.step
    python -m benchmarks.step --shapes coco-stuff --cases bank --repeats 3
    python -m benchmarks.step --device cuda --out FOLDER --budget 60
    python -m benchmarks.step --device cuda --out FOLDER --profile

A step starts from what the network gives (unit embeddings, logits) and the labels, and ends with
the gradient of the embeddings and the batch in the bank: labels resized, predictions, sampling,
loss, bank update, backward. "loss" is the loss alone, forward and backward, on the anchors and
entries of that step; "unmined" is the step without mining. Steps are timed in turn.

On the CPU everything is float32, logits have the size of the embedding as the authors' code
requires, and memory is measured in a process of its own. On CUDA our step runs under autocast to
bfloat16, with a bfloat16 bank and logits of the size of the image; "replayed" is the same from a
CUDA graph. The authors' step is in float32 as released, and under autocast. `--profile` measures
no time: it counts waits of the host and launches, times each kernel, and measures memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

import torch

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import REFUSED, add_device_options, add_run_options, start_run
from benchmarks._measure.counts import profile_run
from benchmarks._measure.memory import measured_peak, peak_memory
from benchmarks._measure.session import Session
from benchmarks._measure.tables import part_lines, sampler_lines, step_head, step_lines
from benchmarks._measure.timers import CPU, NO_TIME, Measured, add_ratios, keep_figures, measure
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.samplers import measure_samplers
from benchmarks._ways.steps import CASES, PARTS, WAYS, StepCase

Row = dict[str, Any]
REFERENCES = ("step", "loss")
CASE_SECONDS = 12.0
"""What a case is expected to take at most on CUDA, kernels being compiled."""


def main(arguments: list[str] | None = None) -> int:
    """Measure the steps, their parts and the samplers; return the exit status."""
    options = _parser().parse_args(arguments)
    if not start_run(options):
        return REFUSED
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options)))
        return 0
    names = ("step_profile.json",) * 2 if options.profile else ("step.json", "step_gpu.json")
    return _Steps(options, Session(options, arguments is None, names)).measure_all()


class _Steps:
    """The cases of one run of the command."""

    def __init__(self, options: argparse.Namespace, session: Session) -> None:
        self.options = options
        self.session = session
        former = session.record.get("steps", [])
        self.steps: list[Row] = [row for row in former if row["note"] != NO_TIME]
        self.samplers: list[Row] = []
        session.record |= {"steps": self.steps, "samplers": self.samplers}

    def measure_all(self) -> int:
        """Measure every case that the record lacks; return the exit status."""
        options, on_gpu = self.options, self.session.as_on_gpu
        shapes = options.shapes or (("small",) if options.rehearse else STEP_SHAPES)
        cases = options.cases or (CASES if on_gpu else (*CASES, "sampler"))
        done = {(row["name"], row["case"]) for row in self.steps}
        chosen = [(name, case) for name in shapes for case in cases if case != "sampler"]
        print(step_head(), flush=True)
        for name, case in (one for one in chosen if one not in done):
            row: Row = {"name": name, "case": case, "shape": asdict(SHAPES[name])}
            row |= {"note": NO_TIME, "measured": {}}
            self.steps.append(row)
            expected = CASE_SECONDS if self.session.device.type == "cuda" else 0.0
            status = self.session.fill(row, partial(self._measure, row), expected)
            print("\n".join(step_lines(row)), flush=True)
            if status != 0:
                return status
        if "sampler" in cases:
            for name in shapes:
                found = measure_samplers(name, options.repeats, self.session.device)
                self.samplers.extend(found)
        for line in chain(*map(part_lines, self.steps), *map(sampler_lines, self.samplers)):
            print(line)
        self.session.save()
        return 0

    def _measure(self, row: Row) -> None:
        torch.manual_seed(0)
        shape = SHAPES[row["name"]]
        case = StepCase(shape, row["case"], self.session.device, as_on_gpu=self.session.as_on_gpu)
        if self.options.profile:
            self._profile(row, case)
        else:
            self._time(row, case)
        row["anchors"] = case.anchors()

    def _time(self, row: Row, case: StepCase) -> None:
        session, repeats = self.session, self.options.repeats
        runs = {way: case.way(way) for way in case.ways()}
        measured: dict[str, Measured] = row["measured"]
        if session.as_on_gpu:
            # Ours first: a process that is stopped later has them.
            ours = {way: run for way, run in runs.items() if not way.startswith("authors")}
            found = measure(ours, repeats, session.device, deadline=session.deadline)
            keep_figures(measured, found)
            session.save()
        found = measure(runs, repeats, session.device, deadline=session.deadline)
        keep_figures(measured, found)
        add_ratios(measured, REFERENCES)
        session.save()
        # The processes that measure memory have banks and queues of their own.
        runs.clear()
        if not session.as_on_gpu:
            for way, one in measured.items():
                one["extra_mb"] = self._peak(way, row) if self.options.memory else None
            row["parts"] = self._parts(case)

    def _profile(self, row: Row, case: StepCase) -> None:
        for way in case.ways():
            if way != "replayed" and self.session.has_time(0.0):
                row["measured"][way] = profile_run(case.way(way), self.session.device)
                self.session.save()
        row["parts"] = self._parts(case)

    def _parts(self, case: StepCase) -> dict[str, float]:
        clock = case.clock_parts()
        clock()
        clocked = [clock() for _ in range(self.options.repeats)]
        return {part: statistics.median(one[part] for one in clocked) for part in PARTS}

    def _peak(self, way: str, row: Row) -> float | None:
        given = ("--shapes", row["name"], "--cases", row["case"])
        return peak_memory("benchmarks.step", "--peak", way, *given)


def _peak_of_one(options: argparse.Namespace) -> float:
    """Return the MB of one implementation on the first shape and case, in this process."""
    way, case = options.peak, options.cases[0]
    # First on a tiny batch: threads and libraries are not part of the run.
    StepCase(SHAPES["small"], case, CPU).way(way)()
    return measured_peak(StepCase(SHAPES[options.shapes[0]], case, CPU).way(way))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("step", __doc__)
    add = parser.add_argument
    add_run_options(parser, repeats=5)
    add_device_options(parser)
    names = f"out of {', '.join(SHAPES)}"
    add("--shapes", nargs="+", choices=list(SHAPES), metavar="NAME", help=names)
    add("--cases", nargs="+", choices=[*CASES, "sampler"], metavar="CASE",
        help=f"out of {', '.join(CASES)}, sampler")  # fmt: skip
    add("--profile", action="store_true", help="count launches and waits; measure no time")
    add("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
