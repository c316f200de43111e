"""Share tests with other processes and record the outcome of each: a plugin of pytest.

    python -m pytest -p benchmarks._gpu.shared_tests --share FOLDER --worker 3/14 tests/gpu

Every process collects the same tests, begins at another one of them, and runs those that no process
has begun: neighbours launch the same kernels, which a process compiles once. Tests that need much
of the card's memory are run by the first process, one after the other. Tests that decide nothing
(marked `ungated`) come last.

Each test has a time limit, after which the process ends, also where it hangs outside of Python. A
test that breaks the CUDA context ends the process as well, because every later test would fail
there. Another process then continues with what is left.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

CONTEXT_LOST = 3
"""Exit status where the CUDA context is broken."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class SharedTests:
    """Claims tests and writes one JSON line when a test begins, and one when it ends."""

    def __init__(self, folder: Path, worker: int, workers: int, seconds: float) -> None:
        self._folder = folder
        self._worker, self._workers = worker, workers
        self._seconds = seconds
        self._lines = (folder / f"worker-{worker}.outcomes").open("a")
        self._outcome: dict[str, Any] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests that this process claims, in place of all of them."""
        groups: dict[str, str | None] = {}
        large, gated, ungated = list[pytest.Item](), list[pytest.Item](), list[pytest.Item]()
        for item in session.items:
            marker = item.get_closest_marker("ungated")
            groups[item.nodeid] = None if marker is None else marker.args[0]
            is_large = item.get_closest_marker("large_memory") is not None
            (ungated if marker else large if is_large else gated).append(item)
        partial = self._folder / f"collected-{self._worker}.partial"
        partial.write_text(json.dumps(groups))
        partial.replace(self._folder / "collected.json")  # The same from every process.
        if self._worker > 0:
            large = []
        numbers = {test: number for number, test in enumerate(groups)}
        for of_kind in (large, gated, ungated):
            first = self._worker * len(of_kind) // self._workers
            for item in of_kind[first:] + of_kind[:first]:
                if self._claim(numbers[item.nodeid]):
                    self._run(item)
        (self._folder / f"worker-{self._worker}.done").touch()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._outcome |= {"outcome": FAILED, "why": _last_line(report)}
        elif report.skipped and self._outcome["outcome"] == PASSED:
            self._outcome |= {"outcome": SKIPPED, "why": _last_line(report)}

    def _claim(self, number: int) -> bool:
        try:
            (self._folder / f"{number}.begun").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _run(self, item: pytest.Item) -> None:
        self._outcome = {"test": item.nodeid, "outcome": PASSED}
        self._write({"test": item.nodeid})
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        faulthandler.cancel_dump_traceback_later()
        self._write(self._outcome)
        if self._outcome["outcome"] == FAILED and _context_is_lost():
            os._exit(CONTEXT_LOST)

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", type=Path, required=True, help="folder of all processes")
    parser.addoption("--worker", default="0/1", help="number of the process, of how many")
    parser.addoption("--test-seconds", type=float, default=60.0, help="limit for each test")


def pytest_configure(config: pytest.Config) -> None:
    worker, workers = map(int, config.getoption("--worker").split("/"))
    plugin = SharedTests(
        config.getoption("--share"), worker, workers, config.getoption("--test-seconds")
    )
    config.pluginmanager.register(plugin, "shared-tests")


def _context_is_lost() -> bool:
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
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
