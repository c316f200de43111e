"""Run the GPU tests in several processes, and record what they found.

    python -m benchmarks._gpu.run_tests --out FOLDER --budget SECONDS --processes 14

pytest-xdist gives each process neighbouring tests, which launch the same kernels, and replaces a
process that crashes; pytest-timeout ends a process in which a test exceeds its limit. Such a test
is unfinished, since it may only be slow. All processes have one Triton cache. `--smoke` runs only
tests that compile what is timed next, and that tell if the kernels are right on this card at all;
`--rehearse` runs a few tests on the CPU, with the tiled form in place of the kernels.

The record is written anew while the tests run. `correct` is false where a test failed, null where a
test did not finish, else true. The exit status is 1 where `correct` is false, else 0. Tests that
are marked `ungated` decide nothing and come last.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import STARTED
from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import write_record

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
MOST_PROCESSES = 14
TEST_SECONDS, RESERVED_SECONDS = 120, 1.0
"""Limit of each test, and what of the budget is left for the record."""
# The configuration of the project has options for a machine without a card.
PYTEST = (
    *("-m", "gpu", "-q", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider"),
    *("-o", "addopts=", "-o", "filterwarnings="),
)
EQUATION = str(TESTS / "test_equation_on_gpu.py")
SMOKE = (
    "-k",
    "headline or test_loss_and_gradients and -negatives and (64- or 256-) or unit_length"
    " or test_step_on_gpu and not compiled and ([0] or [2] or [0-default] or [2-default])",
    *(EQUATION, str(TESTS / "test_headlines_on_gpu.py"), str(TESTS / "test_step_on_gpu.py")),
)
REHEARSED = (
    *("-k", "strides_change and transposed or many_anchors or overflow or opcheck and mined"),
    *(str(TESTS / f"test_{name}_on_gpu.py") for name in ("limits", "training")),
)
REHEARSED_SMOKE = ("-k", "test_loss_and_gradients and bf16-64-", EQUATION)
UNGATED_FILE = "PIXCONTRAST_UNGATED"
"""Environment variable: the file in which a process lists the tests that decide nothing."""
PROCESS_ENDED = "???"
"""The phase that pytest-xdist reports of a test whose process has ended."""
CONTEXT_LOST = 3
"""Exit status of a process whose CUDA context is broken."""


class Recorder:
    """Writes the record of a run: a plugin of the process that distributes the tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ungated = Path(tempfile.gettempdir()) / f"ungated-{os.getpid()}.json"
        self.tests: list[str] = []
        self.outcomes: dict[str, tuple[str, str]] = {}
        self._began: dict[str, float] = {}
        self._written = 0.0
        self._lock = threading.Lock()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self.tests = list(ids)  # The same from every process.

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == PROCESS_ENDED:
            seconds = time.monotonic() - self._began.get(report.nodeid, math.inf)
            outcome = "unfinished" if seconds >= TEST_SECONDS else "failed"
            self.outcomes.setdefault(report.nodeid, (outcome, _last_line(report)))
        elif report.outcome != "passed":
            self.outcomes[report.nodeid] = (report.outcome, _last_line(report))
        elif report.when == "teardown":
            self.outcomes.setdefault(report.nodeid, ("passed", ""))
        if time.monotonic() - self._written > 1.0:
            self.write()

    def write(self) -> dict[str, Any]:
        """Write the record, and return it."""
        ungated = json.loads(self.ungated.read_text()) if self.ungated.exists() else []
        found = self._summary([test for test in self.tests if test not in ungated])
        whole = found["passed"] > 0 and not found["unfinished"]
        record = {
            "correct": False if found["failed"] else True if whole else None,
            **found,
            "ungated": self._summary(ungated),
        }
        with self._lock:
            write_record(self.path, record)
        self._written = time.monotonic()
        return record

    def _summary(self, tests: Sequence[str]) -> dict[str, Any]:
        """Return counts, and the names of the tests that failed or have no outcome."""
        outcomes = {test: self.outcomes.get(test, ("unfinished", "")) for test in tests}
        failed = [test for test, (outcome, _) in outcomes.items() if outcome == "failed"]
        unfinished = [test for test, (found, _) in outcomes.items() if found == "unfinished"]
        return {
            "passed": sum(outcome == "passed" for outcome, _ in outcomes.values()),
            "failed": failed,
            "skipped": Counter(why for outcome, why in outcomes.values() if outcome == "skipped"),
            "unfinished": unfinished,
            "why": {test: outcomes[test][1] for test in failed + unfinished if outcomes[test][1]},
        }


@pytest.hookimpl(trylast=True)  # After -k and -m.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that decide nothing last: this module is a plugin of every process."""
    items.sort(key=lambda item: item.get_closest_marker("ungated") is not None)
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0":
        ungated = [item.nodeid for item in items if item.get_closest_marker("ungated") is not None]
        Path(os.environ[UNGATED_FILE]).write_text(json.dumps(ungated))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)  # Before the time limit begins.
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, None, None]:
    """Run one test of large memory at a time."""
    if item.get_closest_marker("large_memory") is None:
        yield
        return
    with (Path(tempfile.gettempdir()) / "pixcontrast-large-memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End a process whose CUDA context is broken: every later test would fail there."""
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and _context_is_lost():
        os._exit(CONTEXT_LOST)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, and end within the budget whatever they do."""
    options = _parser().parse_args(arguments)
    end = (STARTED if arguments is None else time.perf_counter()) + options.budget
    selection: Sequence[str] = SMOKE if options.smoke else (str(TESTS),)
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.rehearse:
        selection = REHEARSED_SMOKE if options.smoke else REHEARSED
        os.environ["PIXCONTRAST_GPU_TESTS_ON_CPU"] = "tiled"
    recorder = Recorder(options.out / ("smoke.json" if options.smoke else "tests_gpu.json"))

    def stop() -> None:
        os._exit(1 if recorder.write()["correct"] is False else 0)

    timer = threading.Timer(end - RESERVED_SECONDS - time.perf_counter(), stop)
    timer.daemon = True
    timer.start()
    run_tests(recorder, options.processes, selection)
    record = recorder.write()
    print(json.dumps(record, indent=2), flush=True)
    return 1 if record["correct"] is False else 0


def run_tests(recorder: Recorder, processes: int, selection: Sequence[str]) -> None:
    """Run the selected tests in processes side by side."""
    os.environ[UNGATED_FILE] = str(recorder.ungated)
    limits = ("--timeout", str(TEST_SECONDS), "--timeout-method", "thread")
    shared = ("-n", str(processes), "--dist", "worksteal", "-p", "benchmarks._gpu.run_tests")
    pytest.main([*PYTEST, *limits, *shared, *selection], plugins=[recorder])


def _context_is_lost() -> bool:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def _last_line(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # Of a skipped test: file, line and reason.
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr if crash is None else crash.message).strip()[-500:]


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("_gpu.run_tests", __doc__)
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the record")
    add("--budget", type=float, default=170.0, metavar="SECONDS", help="for everything")
    add("--processes", type=int, default=processes, metavar="N", help="processes side by side")
    add("--rehearse", action="store_true", help="a few tests, on the CPU")
    add("--smoke", action="store_true", help="only those that tell in seconds")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
