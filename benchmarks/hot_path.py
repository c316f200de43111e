"""What the loss costs: time and memory of forward and backward, against the alternatives.

    python -m benchmarks.hot_path
    python -m benchmarks.hot_path --shapes 975x47500x256 --repeats 9
    python -m benchmarks.hot_path --device cuda --out FOLDER --budget 240
    python -m benchmarks.hot_path --redraw benchmarks/results/hot_path.json

Implementations are timed in turn within one run. A name alone is forward and backward; on CUDA
"forward" is the forward alone and "replayed" a CUDA graph. The floor is the two plain matrix
products of the same problem, "sdpa" is PyTorch's attention in the same shapes, without mask and
loss: a ceiling. Rates count 4·M·N·D flops against a bank and 6·M²·D against itself, whatever an
implementation computes twice; `of_square` and `of_floor` are shares of the rate of a large square
product and of the floor. On CUDA the loss and the gradient of each implementation are compared
with the textbook formula in float64: `error` is the larger relative error. Memory is the peak of
what one run needs beyond its inputs: on the CPU in a process of its own.

The record is written as figures become known, so that a process that is stopped keeps them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._measure.command import (
    DEVICE_LOST,
    REFUSED,
    add_device_options,
    add_run_options,
    look_at_machine,
    matmul_precision,
    start_run,
    write_record,
)
from benchmarks._measure.environment import describe_device
from benchmarks._measure.memory import extra_memory, measured_peak, peak_memory
from benchmarks._measure.tables import hot_path_head, hot_path_lines
from benchmarks._measure.timers import CPU, NO_TIME, DeviceLostError, in_words, now, release
from benchmarks._ways.cases import STAGES, choose_cases, parse_case_shape
from benchmarks._ways.comparison import Comparison
from benchmarks._ways.problem import MODES, Case, Problem
from benchmarks._ways.products import copy_bandwidth
from benchmarks._ways.ways import (
    COMPILED_WAYS,
    CPU_WAYS,
    CUDA_WAYS,
    WAYS,
    Means,
    compile_for_shape,
    make_runs,
)

Row = dict[str, Any]
MARGIN_SECONDS = 4.0
"""Between the last figure and the end of the budget."""
COMPILE_SECONDS = 60.0
"""What the implementations that compile for long are expected to take at most, in one case."""


def main(arguments: list[str] | None = None) -> int:
    """Measure every case until the budget is spent; return the exit status."""
    started = STARTED if arguments is None else now()
    options = _parser().parse_args(arguments)
    if options.redraw is not None:
        rows = json.loads(options.redraw.read_text())["rows"]
        _draw((options.out or options.redraw.parent) / f"{options.redraw.stem}.png", rows)
        return 0
    if not start_run(options):
        return REFUSED
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options)))
        return 0
    run = _Run(options, started)
    status = run.measure_all()
    if status == 0 and run.path is not None and not run.as_on_gpu:
        _draw(run.path.with_suffix(".png"), run.rows)
    return status


class _Run:
    """One run of the command: its options, its record and its deadline."""

    def __init__(self, options: argparse.Namespace, started: float) -> None:
        self.options = options
        self.started = started
        self.device: torch.device = options.device
        self.as_on_gpu: bool = options.rehearse or self.device.type == "cuda"
        self.deadline = started + options.budget - MARGIN_SECONDS
        name = options.record or ("hot_path_gpu.json" if self.as_on_gpu else "hot_path.json")
        self.path = None if options.out is None else options.out / name
        self.ways = options.ways or (CUDA_WAYS if self.as_on_gpu else CPU_WAYS)
        self.means = Means(self.device, "triton", compile_for_shape, square=8192)
        if options.rehearse:
            self.means = Means(self.device, "tiled", lambda function: function, square=32)
        self.record = self._begin()
        self.rows: list[Row] = self.record["rows"]

    def measure_all(self) -> int:
        """Measure what the record lacks; return the exit status."""
        options = self.options
        cases = choose_cases(
            options.shapes, options.modes, options.stage, self.device.type, options.rehearse
        )
        done = {_key(row) for row in self.rows}
        waiting = [case for case in cases if _key(asdict(case)) not in done]
        print(hot_path_head(), flush=True)
        for number, case in enumerate(waiting):
            row: Row = {**asdict(case), "flops": case.useful_flops, "note": "did not finish"}
            row |= {"correct": None, "measured": {}, "skipped": {}}
            self.rows.append(row)
            if now() + _expected_seconds(case, self.device) > self.deadline:
                row["note"] = NO_TIME
                self.save()
                continue
            self.save()  # A process that dies in this case does not come back to it.
            later = sum(_expected_seconds(other, self.device) for other in waiting[number + 1 :])
            may_compile = cases[case] or now() + COMPILE_SECONDS + later < self.deadline
            status = self._measure(case, row, may_compile)
            self.save()
            print("\n".join(hot_path_lines(row)), flush=True)
            if status != 0:
                return status
        self.record["seconds"] = now() - self.started
        self.save()
        left_out = sum(row["note"] == NO_TIME for row in self.rows)
        print(f"{len(self.rows) - left_out} of {len(self.rows)} cases measured")
        return 0

    def save(self) -> None:
        """Write the record as far as it is known."""
        known = [row["correct"] for row in self.rows if row["correct"] is not None]
        self.record["correct"] = all(known) if known else None
        if self.path is not None:
            write_record(self.path, self.record)

    def _measure(self, case: Case, row: Row, may_compile: bool) -> int:
        comparison = Comparison(case, self.device, row, self.means.square, self.save)
        try:
            release(self.device)
            with matmul_precision(MODES[case.mode].precision):
                problem = Problem.draw(case, self.device)
                runs = make_runs(case, problem, self.ways, self.means, self.as_on_gpu)
                time_left = self.deadline - now() > COMPILE_SECONDS
                comparison.leave_out(runs, may_compile and time_left, self.as_on_gpu)
                comparison.time(runs, self.options.repeats, self.deadline, self.as_on_gpu)
                if self.as_on_gpu and now() < self.deadline:
                    comparison.check(runs, problem)
                comparison.weigh(runs, self._weigher(case))
            row["note"] = None
        except DeviceLostError as lost:
            comparison.keep(getattr(lost, "measured", {}))
            row["note"] = f"the device was lost: {lost}"
            return DEVICE_LOST
        except Exception as error:  # The other cases are still measured.
            row["note"] = in_words(error)
        finally:
            if set(COMPILED_WAYS) & set(self.ways) and not self.options.rehearse:
                torch.compiler.reset()  # Each case is compiled for its own shapes.
        return 0

    def _weigher(self, case: Case) -> Callable[[str, Callable[[], object]], float | None]:
        """Return a function from a name and its run to the MB it needs."""
        if not self.options.memory:
            return lambda name, run: None
        if self.as_on_gpu:
            return lambda name, run: extra_memory(run, self.device)
        shape = f"{case.anchors}x{case.entries or 'itself'}x{case.dim}x{case.classes}"
        given = ("--shapes", shape, "--modes", case.mode)
        return lambda name, run: peak_memory("benchmarks.hot_path", "--peak", name, *given)

    def _begin(self) -> Row:
        """Return the record to resume, or a new one."""
        if self.options.resume and self.path is not None and self.path.exists():
            record: Row = json.loads(self.path.read_text())
            record["rows"] = [row for row in record["rows"] if row["note"] != NO_TIME]
            record["resumed"] = record.get("resumed", 0) + 1
            return record
        environment = look_at_machine(self.options.refuse_busy, self.options.commit)
        record = {"environment": {**environment, **describe_device(self.device)}, "rows": []}
        if self.as_on_gpu:
            num_bytes = 1 << (12 if self.options.rehearse else 30)
            record["copy_gb_per_second"] = copy_bandwidth(self.device, num_bytes)
        return record


def _peak_of_one(options: argparse.Namespace) -> float:
    """Return the MB of one implementation on the first case, in this process."""
    (case, *_) = choose_cases(options.shapes, options.modes, None, "cpu", False)
    # First on a tiny problem: threads, libraries and compiled code are not part of the run.
    tiny = Case(case.mode, min(case.anchors, 64), 4 * case.classes, case.dim, case.classes)
    found = 0.0
    for one in (tiny, case):
        means = Means(CPU, "tiled", compile_for_shape, square=32)
        run = make_runs(one, Problem.draw(one, CPU), (options.peak,), means, False)[options.peak]
        found = measured_peak(run)
    return found


def _expected_seconds(case: Case, device: torch.device) -> float:
    """Return what a case takes at most on CUDA, without the implementations that compile."""
    return 2.0 + 2e-9 * case.similarities if device.type == "cuda" else 0.0


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("mode", "anchors", "entries", "dim", "classes"))


def _draw(path: Path, rows: list[Row]) -> None:
    # Matplotlib is not needed to measure.
    from benchmarks._plots.hot_path import save_curves

    save_curves(path, rows)
    print(f"{path} written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hot_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_run_options(parser, repeats=7)
    add_device_options(parser)
    add("--shapes", nargs="+", type=parse_case_shape, metavar="MxNxD[xC]",
        help='N may be "itself" (default: by device)')  # fmt: skip
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"out of {', '.join(MODES)}")
    add("--ways", nargs="+", choices=WAYS, metavar="WAY", help=f"out of {', '.join(WAYS)}")
    add("--stage", choices=STAGES, help="a part of the cases (default: both)")
    add("--resume", action="store_true", help="continue the record in the folder")
    add("--redraw", type=Path, metavar="JSON", help="draw the picture of an existing record")
    add("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
