"""What the loss costs: time and memory of forward and backward, against the alternatives.

    python -m benchmarks.hot_path
    python -m benchmarks.hot_path --shapes 975x47500x256 --repeats 9
    python -m benchmarks.hot_path --device cuda --out FOLDER --budget 240

Forward and backward of every implementation are timed in turn within one run; on CUDA "replayed"
is a CUDA graph. The floor is the two plain matrix products of the same problem. Rates count
4·M·N·D flops against a bank and 6·M²·D against itself, whatever an implementation computes twice;
on CUDA `of_square` is the rate relative to that of a square product of 8,192 rows.
On CUDA the loss and the gradient of each implementation are compared with the textbook formula in
float64: `error` is the larger relative error. Memory is the peak of what one run needs beyond its
inputs: on the CPU in a process of its own.

The record is written as figures become known, so that a process that is stopped keeps them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch

from benchmarks._measure.arguments import add_device_options, add_run_options, command_parser
from benchmarks._measure.command import REFUSED, has_device, matmul_precision, set_threads
from benchmarks._measure.device import measured_peak, peak_memory
from benchmarks._measure.session import Row, Session
from benchmarks._measure.tables import table
from benchmarks._measure.timers import CPU, NO_TIME, Run, attempt, measure
from benchmarks._ways import ways
from benchmarks._ways.formulas import Losses, relative_error, truth_of
from benchmarks._ways.problem import MODES, Case, Problem, choose_cases, parse_case_shape

Phases = Sequence[Sequence[str]]
COMPILE_SECONDS = 30.0
"""What each of the ways that compile for long is expected to take at most, in one case."""
MOST_SIMILARITIES = 100_000_000
"""On the CPU only the floor and the tiled form run above so many similarities: what holds them all
takes gigabytes, and mining, which holds a part at a time, takes long."""


def main(arguments: list[str] | None = None) -> int:
    """Measure every case until the budget is spent; return the exit status."""
    options = _parser().parse_args(arguments)
    set_threads(options.threads)
    if not options.rehearse and not has_device(options.device):
        return REFUSED
    return _HotPath(options, Session(options, arguments is None, "hot_path")).measure_all()


class _HotPath:
    """The cases of one run of the command."""

    def __init__(self, options: argparse.Namespace, session: Session) -> None:
        self.options = options
        self.session = session
        self.device, self.on_gpu = session.device, session.as_on_gpu
        self.means: dict[str, Any] = {"square": 8192}
        if options.rehearse:
            self.means = {"backend": "tiled", "compiler": lambda function: function, "square": 32}
        self.ways = options.ways or (ways.CUDA_WAYS if self.on_gpu else ways.CPU_WAYS)
        self.cases = choose_cases(options.shapes, options.modes, self.device.type, options.rehearse)
        self.rows: dict[Case, Row] = {}

    def measure_all(self) -> int:
        """Measure every case; return the exit status.

        As on a GPU, the ways that compile for long come after everything else: a compiler that
        never ends then costs no other figure.
        """
        compiled = [way for way in self.ways if self.on_gpu and way in ways.COMPILED_WAYS]
        quick = [way for way in self.ways if way not in compiled]
        for case in self.cases:
            row: Row = {**case._asdict(), "flops": case.useful_flops, "note": NO_TIME}
            self.rows[case] = row | {"correct": None, "measured": {}, "skipped": {}}
            status = self._measure(case, quick, ways.PHASES if self.on_gpu else (ways.WAYS,), 0.0)
            if status != 0:
                return status
        for way, case in itertools.product(compiled, self.cases):
            if self.rows[case]["note"] is None and self.session.has_time(COMPILE_SECONDS):
                status = self._measure(case, [*quick, way], (ways.WAYS,), COMPILE_SECONDS)
                torch.compiler.reset()  # Each case is compiled for its own shapes.
                if status != 0:
                    return status
        left_out = sum(row["note"] == NO_TIME for row in self.rows.values())
        print(f"{len(self.rows) - left_out} of {len(self.rows)} cases measured")
        return 0

    def _measure(self, case: Case, names: Sequence[str], phases: Phases, extra: float) -> int:
        row = self.rows[case]
        self._save()
        # On CUDA, what a case takes at most without the implementations that compile.
        seconds = 2.0 + 2e-9 * case.similarities if self.device.type == "cuda" else 0.0
        job = partial(self._compare, case, row, names, phases)
        status = self.session.fill(row, job, extra + seconds)
        self._save()
        print(table(str(case), row), flush=True)
        return status

    def _compare(self, case: Case, row: Row, names: Sequence[str], phases: Phases) -> None:
        """Time the ways of the first phase, then those of both; check and weigh them.

        A process that is stopped in the second phase has figures of the first.
        """
        with matmul_precision(MODES[case.mode].precision):
            problem = Problem.draw(case, self.device)
            runs = ways.make_runs(case, problem, names, replays=self.on_gpu, **self.means)
            for name in [name for name in runs if too_large(name, case, self.device)]:
                del runs[name]
                if self.on_gpu:
                    row["skipped"][name] = "M×N is too large to try"
            chosen: dict[str, Run] = {}
            for phase in phases:
                chosen |= {name: run for name, run in runs.items() if ways.way_of(name) in phase}
                self._time(case, row, chosen)
                chosen = {name: runs[name] for name in _timed(row) if name in chosen}
                if not self.session.has_time():
                    break
            runs = {name: runs[name] for name in _timed(row) if name in runs}
            if self.on_gpu and self.session.has_time():
                found = attempt(partial(self._check, case, row, runs, problem), self.device)
                if isinstance(found, str):  # The figures stand without the check.
                    row["skipped"]["check"] = found
                self._save()
            for name, run in runs.items():
                row["measured"][name]["extra_mb"] = self._weigh(case, name, run)

    def _time(self, case: Case, row: Row, runs: dict[str, Run]) -> None:
        """Time the runs in turn, and save them with their rates and ratios."""
        references = [name for name in ways.REFERENCES if name in {*row["measured"], *runs}]
        measure(runs, self.options.repeats, self.device, into=row["measured"],
                references=references, deadline=self.session.deadline)  # fmt: skip
        timed = _timed(row)
        for name, one in timed.items():
            flops = ways.flops_of(name, case, self.means["square"])
            one["tflops"] = flops / one["seconds"] / 1e12
        for one in timed.values() if "square" in timed else ():
            one["of_square"] = one["tflops"] / timed["square"]["tflops"]
        self._save()

    def _check(self, case: Case, row: Row, runs: dict[str, Run], problem: Problem) -> None:
        """Compare loss and gradient of the runs with the truth, once each."""
        truth, ours = truth_of(problem), []
        for name, run in runs.items():
            if ways.way_of(name) not in ways.UNCHECKED:
                error = attempt(partial(_error_of, run, truth), self.device)
                right = not isinstance(error, str) and error <= MODES[case.mode].tolerance
                error = "not finite" if error == math.inf else error
                row["measured"][name] |= {"error": error, "correct": right}
                ours += [right] * (ways.way_of(name) in ways.OURS)
        row["correct"] = all(ours) if ours else None

    def _weigh(self, case: Case, name: str, run: Run) -> float | None:
        """Return the MB that a run needs; on the CPU in a process of its own.

        None for what has its memory from the first run on, so that later runs allocate nothing:
        captured runs, and on a GPU the plain products.
        """
        if not self.options.memory:
            return None
        if self.on_gpu:
            if ways.way_of(name) != name or name in ways.PRODUCTS:
                return None
            found = attempt(partial(measured_peak, run, self.device), self.device)
            return None if isinstance(found, str) else found
        return peak_memory(runs_to_weigh, case, name)

    def _save(self) -> None:
        rows = list(self.rows.values())
        known = [row["correct"] for row in rows if row["correct"] is not None]
        self.session.record |= {"rows": rows, "correct": all(known) if known else None}
        self.session.save()


def too_large(way: str, case: Case, device: torch.device) -> bool:
    """Return whether a way needs more than there is time or memory for."""
    if device.type != "cuda":
        return way not in ("floor", "tiled") and case.similarities > MOST_SIMILARITIES
    # All that hold M×N matrices hold three of float32 at least.
    total: int = torch.cuda.get_device_properties(device).total_memory
    return way in ways.DENSE_WAYS and 3 * 4 * case.similarities > total


def _timed(row: Row) -> dict[str, Row]:
    return {name: one for name, one in row["measured"].items() if "seconds" in one}


def _error_of(run: Run, truth: Losses) -> float:
    return relative_error(cast(Losses, run()), truth)


def runs_to_weigh(case: Case, way: str) -> tuple[Run, Run]:
    """Return a way on a tiny problem, and on that of a case."""
    tiny = case._replace(anchors=min(case.anchors, 64), entries=4 * case.classes)
    small, run = (ways.make_runs(one, Problem.draw(one, CPU), (way,))[way] for one in (tiny, case))
    return small, run


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("hot_path", __doc__)
    add = parser.add_argument
    add_run_options(parser, repeats=7)
    add_device_options(parser)
    add("--shapes", nargs="+", type=parse_case_shape, metavar="MxNxD[xC]",
        help='N may be "itself" (default: by device)')  # fmt: skip
    add("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"out of {', '.join(MODES)}")
    add(
        "--ways", nargs="+", choices=ways.WAYS, metavar="WAY", help=f"out of {', '.join(ways.WAYS)}"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
