"""Run chosen tests in a given order and record the outcome of each: a plugin of pytest.

    python -m pytest -p benchmarks._gpu.selected_tests --selected FILE --outcomes FILE tests/gpu

Each test has a time limit, after which the process ends, also where it hangs outside of Python. A
test that breaks the CUDA context ends the process as well, because every later test would fail
there. The outcomes that are recorded tell what is left to run in another process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import pytest

CONTEXT_LOST = 3
"""Exit status where the CUDA context is broken."""
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class SelectedTests:
    """Selects tests and writes one JSON line when a test begins, and one when it ends."""

    def __init__(self, selected: list[str], lines: TextIO, seconds: float) -> None:
        self._selected = selected
        self._lines = lines
        self._seconds = seconds
        self._outcome: dict[str, Any] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        by_id = {item.nodeid: item for item in items}
        config.hook.pytest_deselected(items=[by_id[i] for i in by_id.keys() - set(self._selected)])
        items[:] = [by_id[test] for test in self._selected if test in by_id]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, None, None]:
        self._outcome = {"test": item.nodeid, "outcome": PASSED}
        self._write({"test": item.nodeid})
        assert sys.__stderr__ is not None
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__)
        yield
        faulthandler.cancel_dump_traceback_later()
        self._write(self._outcome)
        if self._outcome["outcome"] == FAILED and _context_is_lost():
            os._exit(CONTEXT_LOST)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._outcome |= {"outcome": FAILED, "why": _last_line(report)}
        elif report.skipped and self._outcome["outcome"] == PASSED:
            self._outcome |= {"outcome": SKIPPED, "why": _last_line(report)}

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--selected", type=Path, required=True, help="JSON list of tests, in order")
    parser.addoption("--outcomes", type=Path, required=True, help="file that lines are added to")
    parser.addoption("--test-seconds", type=float, default=60.0, help="limit for each test")


def pytest_configure(config: pytest.Config) -> None:
    plugin = SelectedTests(
        json.loads(config.getoption("--selected").read_text()),
        config.getoption("--outcomes").open("a"),
        config.getoption("--test-seconds"),
    )
    config.pluginmanager.register(plugin, "selected-tests")


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
