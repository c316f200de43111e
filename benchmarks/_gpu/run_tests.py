"""Run the GPU tests in several processes, within a time budget, and record what they found.

    python -m benchmarks._gpu.run_tests --out FILE --budget SECONDS --processes 14

1. Count, without the GPU, which kernels each test compiles (`kernel_counts.py`).
2. Run the tests in processes that share a Triton cache, packed by the number of kernels that they
   compile (`packing.py`). One process more runs the tests that need much of the card's memory, one
   after the other. Tests that decide nothing (marked `ungated`) follow where a process has
   finished, each in a process of its own. compute-sanitizer's memcheck runs beside all of this.

The record is a JSON file, written anew about once a second. `correct` is false where a test failed
or memcheck found errors, null where a test did not finish, else true. The exit status is 1 where
`correct` is false, else 0. The command ends within its budget, whatever the tests do.

`--rehearse` runs a few tests on the CPU, with the tiled form in place of the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks._gpu.kernel_counts import Planned, kernels_of, read_plan
from benchmarks._gpu.outcomes import (
    MEMCHECK_ERROR,
    TAIL,
    describe_memcheck,
    judge_tests,
    read_outcomes,
    report_lines,
)
from benchmarks._gpu.packing import pack
from benchmarks._gpu.process import Ended, run_limited
from benchmarks._gpu.records import Record, write_record
from benchmarks._gpu.selected_tests import FAILED

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
# The configuration of the project needs plugins that a machine with a card may lack.
PYTEST = (
    *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-W", "ignore"),
    *("--capture=sys", "-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:faulthandler"),
    *("-o", "addopts=", "-o", "filterwarnings="),
)
REHEARSED_FILES = (TESTS / "test_limits_on_gpu.py", TESTS / "test_training_on_gpu.py")
REHEARSED = "strides_change and transposed or many_anchors or overflow or opcheck and mined"
ON_CPU = "PIXCONTRAST_GPU_TESTS_ON_CPU"
TEST_SECONDS = 60.0
RESERVED_SECONDS = 1.0
"""Of the budget; to stop a process takes up to two seconds more."""
COUNTING_SHARE = 0.25
"""The largest part of the budget for counting. Tests that are not counted by then weigh little."""


class TestRun:
    """One run of the GPU tests.

    Args:
        work: a folder for logs and for what the processes exchange.
        end: `time.monotonic()` at which every process is stopped.
        processes: how many share the tests.
        rehearse: whether to run a few tests on the CPU.
    """

    __test__ = False  # Not a test, although pytest would take it for one by its name.

    def __init__(self, work: Path, end: float, processes: int, rehearse: bool) -> None:
        self.work = work
        self.end = end
        self.processes = processes
        self.rehearse = rehearse
        self.began = time.monotonic()
        self.plan: dict[str, Planned] = {}
        self.plan_is_whole = False
        self.memcheck = "not finished"
        self.problems: list[str] = []
        self._ungated: list[str] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        """Count, pack and run. Called in a thread; `record` may be called meanwhile."""
        memcheck = _start(self._run_memcheck)
        self._count()
        kernels = kernels_of(self.plan)
        gated = [test for test, planned in self.plan.items() if planned["ungated"] is None]
        large = [test for test in gated if self.plan[test]["large_memory"]]
        self._ungated = [test for test in self.plan if test not in gated]
        packed = pack({test: kernels[test] for test in gated if test not in large}, self.processes)
        workers = [
            _start(self._work, f"tests-{number}", tests)
            for number, tests in enumerate([large, *packed])
        ]
        for thread in (*workers, memcheck):
            thread.join()

    def record(self) -> Record:
        """What is known at this moment."""
        outcomes: dict[str, dict[str, str]] = {}
        for path in sorted(self.work.glob("*.outcomes")):
            outcomes |= read_outcomes(path)
        return {
            **judge_tests(self.plan, self.plan_is_whole, outcomes, self.memcheck),
            "kernels": len(set[str]().union(*kernels_of(self.plan).values())),
            "problems": self.problems,
            "seconds": round(time.monotonic() - self.began, 1),
        }

    def _count(self) -> None:
        """Fill the plan: all tests, and the kernels of those that are counted in time."""
        seconds = COUNTING_SHARE * (self.end - self.began)
        files = [self.work / f"counts-{number}.json" for number in range(self.processes)]
        ends: dict[Path, Ended] = {}

        def count(number: int, file: Path) -> None:
            arguments = ["-p", "benchmarks._gpu.kernel_counts", "--kernel-counts", str(file)]
            arguments += ["--part", f"{number}/{self.processes}", *self._selection()]
            variables = {ON_CPU: "count", "CUDA_VISIBLE_DEVICES": ""}
            ends[file] = self._run(file.stem, (*PYTEST, *arguments), variables, seconds)

        threads = [_start(count, number, file) for number, file in enumerate(files)]
        for thread in threads:
            thread.join()
        parts = [read_plan(file) for file in files]
        # In the order of collection, of which each part has every n-th test.
        longest = max(map(len, parts), default=0)
        for place in range(longest):
            for part in parts:
                self.plan.update(list(part.items())[place : place + 1])
        self.plan_is_whole = all(file.exists() for file in files)
        self.problems += [
            f"{file.stem}: exit status {ended.exit_status}: {self._log(file.stem)}"
            for file, ended in ends.items()
            if ended.exit_status != 0
        ]

    def _work(self, name: str, tests: Sequence[str]) -> None:
        """Run tests, then ungated ones as long as there are any."""
        self._run_list(name, tests)
        while True:
            with self._lock:
                if not self._ungated:
                    return
                test = self._ungated.pop(0)
            self._run_list(name, [test])

    def _run_list(self, name: str, tests: Sequence[str]) -> None:
        """Run tests in one process, or in several where a test ends the process."""
        selected, outcomes = self.work / f"{name}.selected", self.work / f"{name}.outcomes"
        left = list(tests)
        while left and time.monotonic() < self.end:
            selected.write_text(json.dumps(left))
            arguments = ["-p", "benchmarks._gpu.selected_tests", "--selected", str(selected)]
            arguments += ["--outcomes", str(outcomes), "--test-seconds", str(TEST_SECONDS)]
            # Only the files of these tests, because each takes time to import.
            arguments += sorted({str(ROOT / test.split("::")[0]) for test in left})
            variables = {ON_CPU: "tiled"} if self.rehearse else {}
            ended = self._run(name, (*PYTEST, *arguments), variables)
            found = read_outcomes(outcomes)
            for test in left:
                if test in found and "outcome" not in found[test]:
                    _add_line(outcomes, {"test": test, **_interrupted(ended.exit_status)})
            begun = [test for test in left if test in found]
            left = [test for test in left if test not in found]
            if not begun:
                if ended.exit_status is not None:
                    self.problems.append(f"{name}: no test began: {self._log(name)}")
                return

    def _run_memcheck(self) -> None:
        program = shutil.which("compute-sanitizer")
        if self.rehearse or program is None:
            self.memcheck = "not rehearsed" if self.rehearse else "compute-sanitizer not installed"
            return
        # Calls of the driver that fail are normal: libraries ask for what a driver may lack.
        command = (
            *(program, "--tool", "memcheck", "--report-api-errors", "no", "--print-limit", "20"),
            *("--error-exitcode", str(MEMCHECK_ERROR)),
            *(sys.executable, "-m", "benchmarks._gpu.memcheck_cases"),
        )
        # An allocator that keeps memory would hide addresses that are out of bounds.
        ended = self._run("memcheck", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        log = (self.work / "memcheck.log").read_text(errors="replace")
        self.memcheck = describe_memcheck(ended, log)

    def _run(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        seconds: float = float("inf"),
    ) -> Ended:
        log = self.work / f"{name}.log"
        shared = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(self.work / "triton")),
        }
        return run_limited(
            command,
            seconds=min(seconds, self.end - time.monotonic()),
            output=log,
            errors=log,
            environment={**shared, **variables},
        )

    def _selection(self) -> list[str]:
        return ["-k", REHEARSED, *map(str, REHEARSED_FILES)] if self.rehearse else [str(TESTS)]

    def _log(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text(errors="replace")[-TAIL:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests and keep the record up to date until they end or the budget is used."""
    options = _parser().parse_args(arguments)
    end = time.monotonic() + options.budget - RESERVED_SECONDS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tests = TestRun(Path(folder), end, options.processes, options.rehearse)
        thread = _start(tests.run)
        while True:
            write_record(options.out, tests.record())
            thread.join(timeout=1.0)
            if not thread.is_alive() or time.monotonic() > end + 2 * RESERVED_SECONDS:
                break
        record = tests.record()
        write_record(options.out, record)
    print("\n".join(report_lines(record)), flush=True)
    return 1 if record["correct"] is False else 0


def _interrupted(exit_status: int | None) -> dict[str, str]:
    """What is recorded of a test in which the process ended."""
    if exit_status is not None and exit_status < 0:
        return {"outcome": FAILED, "why": f"the process was ended by signal {-exit_status}"}
    if exit_status is None:
        return {"why": "stopped at the end of the budget"}
    return {"why": f"more than {TEST_SECONDS:.0f} s, or the process ended"}


def _add_line(path: Path, entry: Mapping[str, str]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _start(function: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks._gpu.run_tests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the JSON record")
    add("--budget", type=float, default=170.0, metavar="SECONDS", help="for everything")
    add("--processes", type=int, default=14, help="tests side by side")
    add("--rehearse", action="store_true", help="a few tests on the CPU, with the tiled form")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
