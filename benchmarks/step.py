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
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._measure.command import (
    DEVICE_LOST,
    REFUSED,
    add_device_options,
    add_run_options,
    look_at_machine,
    start_run,
    write_record,
)
from benchmarks._measure.counts import profile_run
from benchmarks._measure.environment import describe_device
from benchmarks._measure.memory import measured_peak, peak_memory
from benchmarks._measure.tables import part_lines, sampler_lines, step_head, step_lines
from benchmarks._measure.timers import (
    CPU,
    NO_TIME,
    DeviceLostError,
    Measured,
    add_ratios,
    in_words,
    measure,
    now,
    release,
)
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.samplers import measure_samplers
from benchmarks._ways.steps import CASES, PARTS, WAYS, StepCase

Row = dict[str, Any]
REFERENCES = ("step", "loss")
MARGIN_SECONDS = 3.0
"""Between the last figure and the end of the budget."""
CASE_SECONDS = 12.0
"""What a case is expected to take at most on CUDA, kernels being compiled."""


def main(arguments: list[str] | None = None) -> int:
    """Measure the steps, their parts and the samplers; return the exit status."""
    started = STARTED if arguments is None else now()
    options = _parser().parse_args(arguments)
    if not start_run(options):
        return REFUSED
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options)))
        return 0
    return _Run(options, started).measure_all()


class _Run:
    """One run of the command: its options, its record and its deadline."""

    def __init__(self, options: argparse.Namespace, started: float) -> None:
        self.options = options
        self.device: torch.device = options.device
        self.as_on_gpu: bool = options.rehearse or self.device.type == "cuda"
        self.deadline = started + options.budget - MARGIN_SECONDS
        name = "step_gpu.json" if self.as_on_gpu else "step.json"
        if options.profile:
            name = "step_profile.json"
        self.path = None if options.out is None else options.out / (options.record or name)
        environment = look_at_machine(options.refuse_busy, options.commit)
        self.steps: list[Row] = []
        self.samplers: list[Row] = []
        self.record: Row = {
            "environment": {**environment, **describe_device(self.device)},
            "steps": self.steps,
            "samplers": self.samplers,
        }

    def measure_all(self) -> int:
        """Measure every case; return the exit status."""
        options = self.options
        shapes = options.shapes or (("small",) if options.rehearse else STEP_SHAPES)
        cases = options.cases or (CASES if self.as_on_gpu else (*CASES, "sampler"))
        print(step_head(), flush=True)
        for name in shapes:
            for case in (case for case in cases if case != "sampler"):
                row: Row = {"name": name, "case": case, "shape": asdict(SHAPES[name])}
                row |= {"note": "did not finish", "measured": {}}
                self.steps.append(row)
                status = self._measure(row)
                self._save()
                print("\n".join(step_lines(row)), flush=True)
                if status != 0:
                    return status
        if "sampler" in cases:
            for name in shapes:
                self.samplers.extend(measure_samplers(name, options.repeats, self.device))
        for row in self.steps:
            print("\n".join(part_lines(row)))
        for row in self.samplers:
            print("\n".join(sampler_lines(row)))
        self._save()
        return 0

    def _measure(self, row: Row) -> int:
        expected = CASE_SECONDS if self.device.type == "cuda" else 0.0
        if now() + expected > self.deadline:
            row["note"] = NO_TIME
            return 0
        self._save()
        try:
            release(self.device)
            torch.manual_seed(0)
            case = StepCase(SHAPES[row["name"]], row["case"], self.device, as_on_gpu=self.as_on_gpu)
            if self.options.profile:
                self._profile(row, case)
            else:
                self._time(row, case)
            row["anchors"] = case.anchors()
            row["note"] = None
        except DeviceLostError as lost:
            row["measured"] |= getattr(lost, "measured", {})
            row["note"] = f"the device was lost: {lost}"
            return DEVICE_LOST
        except Exception as error:
            if not self.as_on_gpu:
                raise
            row["note"] = in_words(error)  # The other cases are still measured.
        return 0

    def _time(self, row: Row, case: StepCase) -> None:
        runs = {way: case.way(way) for way in case.ways()}
        measured: dict[str, Measured] = {}
        row["measured"] = measured
        if self.as_on_gpu:
            # Ours first, so that a process that is stopped later has them.
            ours = {way: run for way, run in runs.items() if not way.startswith("authors")}
            measured |= measure(ours, self.options.repeats, self.device, deadline=self.deadline)
            self._save()
        measured |= measure(runs, self.options.repeats, self.device, deadline=self.deadline)
        add_ratios(measured, REFERENCES)
        self._save()
        # The processes that measure memory have banks and queues of their own.
        runs.clear()
        if not self.as_on_gpu:
            for way, one in measured.items():
                one["extra_mb"] = self._peak(way, row) if self.options.memory else None
            row["parts"] = self._parts(case)

    def _profile(self, row: Row, case: StepCase) -> None:
        for way in case.ways():
            if way != "replayed" and now() < self.deadline:
                row["measured"][way] = profile_run(case.way(way), self.device)
                self._save()
        row["parts"] = self._parts(case)

    def _parts(self, case: StepCase) -> dict[str, float]:
        clock = case.clock_parts()
        clock()
        clocked = [clock() for _ in range(self.options.repeats)]
        return {part: statistics.median(one[part] for one in clocked) for part in PARTS}

    def _peak(self, way: str, row: Row) -> float | None:
        given = ("--shapes", row["name"], "--cases", row["case"])
        return peak_memory("benchmarks.step", "--peak", way, *given)

    def _save(self) -> None:
        if self.path is not None:
            write_record(self.path, self.record)


def _peak_of_one(options: argparse.Namespace) -> float:
    """Return the MB of one implementation on the first shape and case, in this process."""
    way, case = options.peak, options.cases[0]
    # First on a tiny batch: threads and libraries are not part of the run.
    StepCase(SHAPES["small"], case, CPU).way(way)()
    return measured_peak(StepCase(SHAPES[options.shapes[0]], case, CPU).way(way))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
