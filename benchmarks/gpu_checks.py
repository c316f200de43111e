"""Is it right on this card: the tests that need a GPU, and compute-sanitizer where it is there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.processes import TIMED_OUT, Command, Ended, run_together

TESTS = Path(__file__).parents[1] / "tests" / "gpu"
# What the configuration of the project asks for beyond pytest itself is left out.
PYTEST = (
    *("-m", "pytest", "-m", "gpu", "-q", "--tb=short", "--maxfail=25", "-rs"),
    *(
        "-p",
        "no:cacheprovider",
        "-p",
        "no:timeout",
        "-p",
        "benchmarks.shard",
        "-o",
        "addopts=",
        "-W",
        "ignore",
    ),
    *("-o", "filterwarnings=", "-o", "faulthandler_timeout=120"),
)
TOOLS = ("memcheck", "racecheck")
NOTHING_COLLECTED = 5
"""pytest's exit status for a part in which no test fell."""


@dataclass(frozen=True)
class Verdict:
    """What was found, and whether the speed part may go on."""

    green: bool
    details: Mapping[str, Any]


def check(folder: Path, seconds: float, shards: int, extra: Mapping[str, str]) -> Verdict:
    """Run all at once; logs of the tests are joined in `tests.log`, each tool has its own."""
    parts = folder / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    names = [f"tests-{number}" for number in range(shards)]
    commands = {name: _tests(name, parts, shards, extra) for name in names}
    tools = {tool: _sanitizer(tool, extra) for tool in TOOLS}
    commands |= {tool: command for tool, command in tools.items() if command is not None}
    ended = run_together(commands, parts, seconds)
    details = {
        **read_results([parts / f"{name}.xml" for name in names]),
        "shards": {name: _in_words(ended[name]) for name in names},
        "sanitizer": {
            tool: "compute-sanitizer is not there" if command is None else _in_words(ended[tool])
            for tool, command in tools.items()
        },
    }
    join_logs([parts / f"{name}.log" for name in names], folder / "tests.log")
    for tool in TOOLS:
        if (parts / f"{tool}.log").exists():
            (parts / f"{tool}.log").replace(folder / f"{tool}.log")
    shutil.rmtree(parts, ignore_errors=True)
    return Verdict(is_green(details, [ended[name] for name in names]), details)


def is_green(details: Mapping[str, Any], shards: Sequence[Ended]) -> bool:
    """Every part ended, something ran, nothing failed, and no tool found a fault.

    A tool that is not there or was too slow says nothing either way. Tests that were all skipped
    have shown nothing: that is red.
    """
    whole = all(shard.status in (0, NOTHING_COLLECTED) for shard in shards)
    faults = [words for words in details["sanitizer"].values() if words.startswith("exit status")]
    return whole and details["passed"] > 0 and details["failed"] == 0 and not faults


def read_results(reports: Sequence[Path]) -> dict[str, Any]:
    """Counts of the JUnit reports that are there, what failed, and why the rest was left out."""
    passed, failures, skipped = 0, list[str](), dict[str, int]()
    for report in reports:
        if not report.exists():
            continue
        for case in ElementTree.parse(report).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failures.append(name)
            elif skip is not None:
                reason = skip.get("message", "")
                skipped[reason] = skipped.get(reason, 0) + 1
            else:
                passed += 1
    return {"passed": passed, "failed": len(failures), "failures": failures, "skipped": skipped}


def _tests(name: str, parts: Path, shards: int, extra: Mapping[str, str]) -> Command:
    number = name.split("-")[1]
    report = (parts / f"{name}.xml").resolve()
    given = (f"--junitxml={report}", "--shard", f"{number}/{shards}", str(TESTS))
    root = {"PYTHONPATH": str(TESTS.parents[1])}
    return Command((sys.executable, *PYTEST, *given), {**root, **extra})


def _sanitizer(tool: str, extra: Mapping[str, str]) -> Command | None:
    program = shutil.which("compute-sanitizer")
    if program is None:
        return None
    arguments = (
        *(program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"),
        *(sys.executable, "-m", "benchmarks.sanitizer_cases"),
    )
    # With a cache between it and the allocator the tool sees few addresses as out of bounds.
    root = {"PYTHONPATH": str(TESTS.parents[1]), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Command(arguments, {**root, **extra})


def _in_words(ended: Ended) -> str:
    if ended.status is None:
        return f"{TIMED_OUT} after {ended.seconds:.0f} s"
    fine = ended.status in (0, NOTHING_COLLECTED)
    return f"{'ended' if fine else f'exit status {ended.status}'} after {ended.seconds:.0f} s"


def join_logs(logs: Sequence[Path], path: Path) -> None:
    """One log of several, each under its name."""
    with path.open("w") as joined:
        for log in logs:
            joined.write(f"==== {log.stem}\n{log.read_text(errors='replace')}\n")
