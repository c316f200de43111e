"""Run the GPU tests in several processes, within a time budget, and record what they found.

    python -m benchmarks._gpu.run_tests --out FOLDER --budget SECONDS --processes 14

The processes have one Triton cache and take the tests in turn (`shared_tests.py`).
compute-sanitizer's memcheck runs a few of the tests beside them. `--smoke` runs only tests that
tell in seconds if the kernels are right on this card at all; `--rehearse` runs a few tests on the
CPU, with the tiled form in place of the kernels.

The record is written anew about once a second. `correct` is false where a test failed or memcheck
found errors, null where a test did not finish, else true. The exit status is 1 where `correct` is
false, else 0. The command ends within its budget, whatever the tests do.
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
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._gpu.process import Ended, run_limited
from benchmarks._gpu.shared_tests import FAILED, PASSED, SKIPPED
from benchmarks._gpu.stages import stage_parser
from benchmarks._measure.command import write_record

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
# The configuration of the project needs plugins that a machine with a card may lack.
PYTEST = (
    *(sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-W", "ignore"),
    *("--capture=sys", "-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:faulthandler"),
    *("-o", "addopts=", "-o", "filterwarnings="),
)
SMOKE = (
    "-k",
    "test_loss_and_gradients and -negatives and (64- or 256-) or unit_length"
    " or test_step_on_gpu and not compiled",
    *(str(TESTS / f"test_{name}_on_gpu.py") for name in ("equation", "step")),
)
MEMCHECK = (
    *("-k", "test_loss_and_gradients and (123- or -3-) or test_mining and bf16"),
    str(TESTS / "test_equation_on_gpu.py"),
)
"""Few tests, because each compiles kernels of its own; at sizes that are no multiple of a tile."""
REHEARSED = (
    *("-k", "strides_change and transposed or many_anchors or overflow or opcheck and mined"),
    *(str(TESTS / f"test_{name}_on_gpu.py") for name in ("limits", "training")),
)
REHEARSED_SMOKE = ("-k", "test_loss_and_gradients and bf16-64-", str(TESTS))
TEST_SECONDS = 60.0
RESERVED_SECONDS = 1.0
"""Of the budget; to stop a process takes up to two seconds more."""
MEMCHECK_ERROR, MEMCHECK_FOUND = 9, "found errors"
"""The exit status that memcheck is told to have where it found an error, and what is recorded."""
TAIL = 800
"""Characters of a log that are recorded."""
Outcomes = Mapping[str, Mapping[str, str]]


class TestRun:
    """One run of the GPU tests.

    Args:
        work: a folder for logs and for what the processes exchange.
        end: `time.monotonic()` at which every process is stopped.
        processes: how many share the tests.
        selection: arguments of pytest that select the tests.
        rehearse: whether they run on the CPU.
    """

    __test__ = False  # Not a test, although pytest would take it for one by its name.

    def __init__(
        self, work: Path, end: float, processes: int, selection: Sequence[str], rehearse: bool
    ) -> None:
        self.work = work
        self.end = end
        self.processes = processes
        self.selection = selection
        self.rehearse = rehearse
        self.began = time.monotonic()
        self.memcheck = "not run"
        self.problems: list[str] = []

    def run(self) -> None:
        """Run everything. Called in a thread; `record` may be called meanwhile."""
        threads = [_start(self._work, number) for number in range(self.processes)]
        if not self.rehearse and self.selection != SMOKE:
            threads.append(_start(self._run_memcheck))
        for thread in threads:
            thread.join()

    def record(self) -> dict[str, Any]:
        """Return what is known at this moment."""
        outcomes: dict[str, dict[str, str]] = {}
        for path in sorted(self.work.glob("*.outcomes")):
            outcomes |= read_outcomes(path)
        collected = self.work / "collected.json"
        groups = json.loads(collected.read_text()) if collected.exists() else {}
        return {
            **judge_tests(groups, outcomes, self.memcheck),
            "problems": self.problems,
            "seconds": round(time.monotonic() - self.began, 1),
        }

    def _work(self, number: int) -> None:
        """Run tests in one process, or in several where a test ends the process."""
        name = f"worker-{number}"
        outcomes = self.work / f"{name}.outcomes"
        plugin = ["-p", "benchmarks._gpu.shared_tests", "--share", str(self.work)]
        plugin += ["--worker", f"{number}/{self.processes}", "--test-seconds", f"{TEST_SECONDS}"]
        variables = {"PIXCONTRAST_GPU_TESTS_ON_CPU": "tiled"} if self.rehearse else {}
        known = 0
        while time.monotonic() < self.end:
            ended = self._run(name, (*PYTEST, *plugin, *self.selection), variables)
            found = read_outcomes(outcomes)
            for test, outcome in found.items():
                if "outcome" not in outcome and "why" not in outcome:
                    line = json.dumps({"test": test, **_interrupted(ended.exit_status)})
                    with outcomes.open("a") as file:
                        file.write(f"{line}\n")
            if ended.exit_status is None or (self.work / f"{name}.done").exists():
                return
            if len(found) == known:
                self.problems.append(f"{name}: no test began: {self._log(name)}")
                return
            known = len(found)

    def _run_memcheck(self) -> None:
        program = shutil.which("compute-sanitizer")
        if program is None:
            self.memcheck = "compute-sanitizer not installed"
            return
        # Calls of the driver that fail are normal: libraries ask for what a driver may lack.
        options = ("--tool", "memcheck", "--report-api-errors", "no", "--print-limit", "20")
        command = (program, *options, "--error-exitcode", str(MEMCHECK_ERROR), *PYTEST, *MEMCHECK)
        # An allocator that keeps memory would hide addresses that are out of bounds.
        ended = self._run("memcheck", command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        log = (self.work / "memcheck.log").read_text(errors="replace")
        self.memcheck = describe_memcheck(ended, log)

    def _run(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> Ended:
        shared = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(self.work / "triton")),
        }
        return run_limited(
            command,
            seconds=self.end - time.monotonic(),
            log=self.work / f"{name}.log",
            environment={**shared, **variables},
        )

    def _log(self, name: str) -> str:
        return (self.work / f"{name}.log").read_text(errors="replace")[-TAIL:]


def read_outcomes(path: Path) -> dict[str, dict[str, str]]:
    """Return by test what `shared_tests` has written; one that has begun may have no outcome."""
    found: dict[str, dict[str, str]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The last line, while it is written.
        found.setdefault(entry["test"], {}).update(entry)
    return found


def judge_tests(
    groups: Mapping[str, str | None], outcomes: Outcomes, memcheck: str
) -> dict[str, Any]:
    """Return the record of a run: `correct` and what it follows from.

    It is False where a test that decides failed or memcheck found errors; else None where not every
    such test has an outcome, or none passed; else True.

    Args:
        groups: of every test, the group whose outcomes decide nothing, or None.
        outcomes: of the tests that have begun.
        memcheck: what it found, in words.
    """
    of_group: dict[str | None, list[str]] = {None: []}
    for test, group in groups.items():
        of_group.setdefault(group, []).append(test)
    found = _summarise(of_group.pop(None), outcomes)
    if memcheck.startswith(MEMCHECK_FOUND):
        found["failed"].append("memcheck")
    whole = found["passed"] > 0 and not found["unfinished"]
    ungated = {str(group): _summarise(tests, outcomes) for group, tests in of_group.items()}
    return {
        "correct": False if found["failed"] else True if whole else None,
        **found,
        "ungated": ungated,
        "memcheck": memcheck,
    }


def _summarise(tests: Iterable[str], outcomes: Outcomes) -> dict[str, Any]:
    """Return counts, and the names of the tests that failed or have no outcome."""
    by_outcome: dict[str | None, list[str]] = {}
    for test in tests:
        by_outcome.setdefault(outcomes.get(test, {}).get("outcome"), []).append(test)
    failed, unfinished = by_outcome.get(FAILED, []), by_outcome.get(None, [])
    reasons = {test: outcomes.get(test, {}).get("why") for test in (*failed, *unfinished)}
    return {
        "passed": len(by_outcome.get(PASSED, [])),
        "failed": failed,
        "skipped": dict(Counter(outcomes[test]["why"] for test in by_outcome.get(SKIPPED, []))),
        "unfinished": unfinished,
        "why": {test: why for test, why in reasons.items() if why is not None},
    }


def describe_memcheck(ended: Ended, log: str) -> str:
    """Return what memcheck found. Only its own exit status for errors counts as a fault."""
    if ended.exit_status is None:
        return f"not finished after {ended.seconds:.0f} s"
    if ended.exit_status == MEMCHECK_ERROR:
        return f"{MEMCHECK_FOUND}: {log[-TAIL:]}"
    if ended.exit_status == 0 and "ERROR SUMMARY: 0 errors" in log:
        return f"no errors after {ended.seconds:.0f} s"
    return f"could not run (exit status {ended.exit_status}): {log[-TAIL:]}"


def _interrupted(exit_status: int | None) -> dict[str, str]:
    """Return what is recorded of a test in which the process ended."""
    if exit_status is not None and exit_status < 0:
        return {"outcome": FAILED, "why": f"the process was ended by signal {-exit_status}"}
    if exit_status is None:
        return {"why": "stopped at the end of the budget"}
    return {"why": f"more than {TEST_SECONDS:.0f} s, or the process ended"}


def _start(function: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests and keep the record up to date until they end or the budget is used."""
    options = _parser().parse_args(arguments)
    end = time.monotonic() + options.budget - RESERVED_SECONDS
    selection: Sequence[str] = SMOKE if options.smoke else (str(TESTS),)
    if options.rehearse:
        selection = REHEARSED_SMOKE if options.smoke else REHEARSED
    path = options.out / ("smoke.json" if options.smoke else "tests_gpu.json")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tests = TestRun(Path(folder), end, options.processes, selection, options.rehearse)
        thread = _start(tests.run)
        while thread.is_alive() and time.monotonic() < end + 2 * RESERVED_SECONDS:
            write_record(path, tests.record())
            thread.join(timeout=1.0)
        record = tests.record()
        write_record(path, record)
    words = {True: "correct", False: "WRONG", None: "not known to be correct"}
    print(f"tests: {words[record['correct']]}", json.dumps(record, indent=2), flush=True)
    return 1 if record["correct"] is False else 0


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser("run_tests", __doc__)
    parser.add_argument("--smoke", action="store_true", help="only those that tell in seconds")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
