"""Which tests execute which lines of the package, and how long each of them takes.

A fault in a line is shown to the tests that execute it, and to no others: they could not see it.
Needs coverage.py, which is among the packages of `pixcontrast[release]`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TESTS = tuple(
    f"tests/{folder}/test_{name}.py"
    for folder, names in {
        "api": ("errors", "public_api"),
        "samplers": ("samplers",),
        "bank": ("bank", "checkpoints", "bank_states", "bank_faults"),
        "losses": ("losses", "stats", "authors_defects"),
        "pixels": ("regions", "resize"),
        "info_nce": ("mining", "selection", "parts", "backends", "numerics", "equation",
                     "equation_properties"),
    }.items()
    for name in names
)  # fmt: skip
"""Those that run in one process, without a compiler, an interpreter of kernels or a renderer."""


PLAIN = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain")
"""Nobody reads what an assertion says; and modules that are there already need not be rewritten."""
IMPORTED = ""
"""The name that coverage gives to what runs outside of any test."""

SIGNATURES = "tests/api/test_public_api.py"


class Reach(NamedTuple):
    """What every test executes.

    Attributes:
        lines: by file of the package and by line, the tests that execute it.
        seconds: of each test.
    """

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def of(self, file: str, lines: Iterable[int], seconds: float | None = None) -> list[str]:
        """The tests that execute one of the lines, the shortest first, for so long in all.

        Defaults and constants are executed before any test: they are shown to the tests that
        execute something of the file, and to those that read signatures.
        """
        own = self.lines.get(file, {})
        tests = {test for line in lines for test in own.get(str(line), ())}
        if IMPORTED in tests:
            tests = {test for found in own.values() for test in found} - {IMPORTED}
            tests |= {test for test in self.seconds if test.startswith(SIGNATURES)}
        in_order = sorted(tests, key=lambda test: (self.seconds[test], test))
        if seconds is None:
            return in_order
        until = accumulate(self.seconds[test] for test in in_order)
        return [test for test, sum_so_far in zip(in_order, until, strict=True)
                if sum_so_far <= seconds]  # fmt: skip


def find_reach(path: Path) -> Reach:
    """From the file, or measured and written to it."""
    if not path.exists():
        child = os.fork()
        if child == 0:
            os._exit(_measure(path))
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit("the tests fail without any fault")
    return Reach(**json.loads(path.read_text()))


class _Contexts:
    """Tells coverage which test is running, and notes how long it took."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        start = time.monotonic()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = round(time.monotonic() - start, 3)
            self.coverage.switch_context(IMPORTED)


def _measure(path: Path) -> int:
    from coverage import Coverage

    coverage = Coverage(data_file=None, branch=False, source=["pixcontrast"], config_file=False)
    contexts = _Contexts(coverage)
    coverage.start()
    status = pytest.main([*PLAIN, *TESTS], plugins=[contexts])
    coverage.stop()
    data = coverage.get_data()
    package = Path.cwd() / "pixcontrast"
    lines: dict[str, dict[str, list[str]]] = {}
    for file in data.measured_files():
        by_line = data.contexts_by_lineno(file)
        lines[str(Path(file).relative_to(package))] = {
            str(line): sorted(tests) for line, tests in by_line.items()
        }
    path.write_text(json.dumps(Reach(lines, contexts.seconds)._asdict()))
    return int(status)


class Chosen:
    """Runs these tests alone, in this order; of files that are named whole, all."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leaves out what is not among them."""
        if not any("::" in test for test in self.order):
            return
        kept = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(kept, key=lambda item: self.order[item.nodeid])
