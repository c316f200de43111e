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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import (
    REFUSED,
    add_device_options,
    add_run_options,
    matmul_precision,
    start_run,
)
from benchmarks._measure.memory import extra_memory, measured_peak, peak_memory
from benchmarks._measure.session import UNFINISHED, Session
from benchmarks._measure.tables import hot_path_head, hot_path_lines
from benchmarks._measure.timers import CPU, NO_TIME, Run
from benchmarks._ways.cases import STAGES, choose_cases, parse_case_shape
from benchmarks._ways.comparison import Comparison
from benchmarks._ways.problem import MODES, Case, Problem
from benchmarks._ways.products import copy_bandwidth
from benchmarks._ways.ways import (
    COMPILED_WAYS,
    CPU_WAYS,
    CUDA_WAYS,
    PHASES,
    WAYS,
    Means,
    compile_for_shape,
    make_runs,
)

Row = dict[str, Any]
COMPILE_SECONDS = 60.0
"""What the ways that compile for long are expected to take at most, in one case."""


def main(arguments: list[str] | None = None) -> int:
    """Measure every case until the budget is spent; return the exit status."""
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
    session = Session(options, arguments is None, ("hot_path.json", "hot_path_gpu.json"))
    status = _HotPath(options, session).measure_all()
    if status == 0 and session.path is not None and not session.as_on_gpu:
        _draw(session.path.with_suffix(".png"), session.record["rows"])
    return status


class _HotPath:
    """The cases of one run of the command."""

    def __init__(self, options: argparse.Namespace, session: Session) -> None:
        self.options = options
        self.session = session
        self.means = Means(session.device, "triton", compile_for_shape, square=8192)
        if options.rehearse:
            self.means = Means(session.device, "tiled", lambda function: function, square=32)
        self.ways = options.ways or (CUDA_WAYS if session.as_on_gpu else CPU_WAYS)
        self.cases = choose_cases(
            options.shapes, options.modes, options.stage, session.device.type, options.rehearse
        )
        again = {_key(asdict(case)) for case in self.cases}
        former = session.record.get("rows", [])
        self.rows: list[Row] = [
            row for row in former if row["note"] != NO_TIME or _key(row) not in again
        ]
        session.record["rows"] = self.rows
        if session.as_on_gpu and not session.resumed:
            num_bytes = 1 << (12 if options.rehearse else 30)
            session.record["copy_gb_per_second"] = copy_bandwidth(session.device, num_bytes)

    def measure_all(self) -> int:
        """Measure what the record lacks; return the exit status.

        As on a GPU, the ways that compile for long come after everything else: a compiler that
        never ends then costs no other figure.
        """
        print(hot_path_head(), flush=True)
        done = {_key(row) for row in self.rows}
        on_gpu = self.session.as_on_gpu
        quick = [way for way in self.ways if not (on_gpu and way in COMPILED_WAYS)]
        for case in (case for case in self.cases if _key(asdict(case)) not in done):
            row: Row = {**asdict(case), "flops": case.useful_flops, "note": NO_TIME}
            row |= {"correct": None, "measured": {}, "skipped": {}}
            self.rows.append(row)
            status = self._measure(case, row, quick, PHASES if on_gpu else (WAYS,), 0.0)
            if status != 0:
                return status
        status = self._measure_compiled() if on_gpu else 0
        left_out = sum(row["note"] == NO_TIME for row in self.rows)
        print(f"{len(self.rows) - left_out} of {len(self.rows)} cases measured")
        return status

    def _measure_compiled(self) -> int:
        """Measure the headlines again with the ways that compile, while there is time for it."""
        compiled = [way for way in self.ways if way in COMPILED_WAYS]
        rows = {_key(row): row for row in self.rows}
        for case in (case for case, is_headline in self.cases.items() if is_headline):
            row = rows[_key(asdict(case))]
            missing = [way for way in compiled if way not in (*row["measured"], *row["skipped"])]
            if not missing or row["note"] is not None or not self.session.has_time(COMPILE_SECONDS):
                continue
            # A process that dies here does not come back to them.
            row["skipped"] |= dict.fromkeys(missing, UNFINISHED)
            status = self._measure(case, row, self.ways, (WAYS,), COMPILE_SECONDS)
            torch.compiler.reset()  # Each case is compiled for its own shapes.
            self._save()
            if status != 0:
                return status
        return 0

    def _measure(
        self,
        case: Case,
        row: Row,
        ways: Sequence[str],
        phases: Sequence[Sequence[str]],
        extra_seconds: float,
    ) -> int:
        expected = extra_seconds + _expected_seconds(case, self.session.device)
        job = partial(self._compare, case, row, ways, phases)
        status = self.session.fill(row, job, expected)
        finished = {way for way in row["measured"] if row["skipped"].get(way) == UNFINISHED}
        row["skipped"] = {way: said for way, said in row["skipped"].items() if way not in finished}
        self._save()
        print("\n".join(hot_path_lines(row)), flush=True)
        return status

    def _compare(
        self, case: Case, row: Row, ways: Sequence[str], phases: Sequence[Sequence[str]]
    ) -> None:
        session = self.session
        comparison = Comparison(case, session.device, row, self.means.square, session.save)
        with matmul_precision(MODES[case.mode].precision):
            problem = Problem.draw(case, session.device)
            runs = make_runs(case, problem, ways, self.means, session.as_on_gpu)
            comparison.leave_out(runs, say=session.as_on_gpu)
            comparison.time(runs, self.options.repeats, session.deadline, phases)
            if session.as_on_gpu and session.has_time(0.0):
                comparison.check(runs, problem)
            comparison.weigh(runs, self._weigher(case))

    def _save(self) -> None:
        known = [row["correct"] for row in self.rows if row["correct"] is not None]
        self.session.record["correct"] = all(known) if known else None
        self.session.save()

    def _weigher(self, case: Case) -> Callable[[str, Run], float | None]:
        """Return a function from a name and its run to the MB it needs."""
        if not self.options.memory:
            return lambda name, run: None
        if self.session.as_on_gpu:
            return lambda name, run: extra_memory(run, self.session.device)
        shape = f"{case.anchors}x{case.entries or 'itself'}x{case.dim}x{case.classes}"
        given = ("--shapes", shape, "--modes", case.mode)
        return lambda name, run: peak_memory("benchmarks.hot_path", "--peak", name, *given)


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
    parser = command_parser("hot_path", __doc__)
    add = parser.add_argument
    add_run_options(parser, repeats=7)
    add_device_options(parser)
    add("--shapes", nargs="+", type=parse_case_shape, metavar="MxNxD[xC]",
        help='N may be "itself" (default: by device)')  # fmt: skip
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"out of {', '.join(MODES)}")
    add("--ways", nargs="+", choices=WAYS, metavar="WAY", help=f"out of {', '.join(WAYS)}")
    add("--stage", choices=STAGES, help="a part of the cases (default: both)")
    add("--redraw", type=Path, metavar="JSON", help="draw the picture of an existing record")
    add("--peak", choices=WAYS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
