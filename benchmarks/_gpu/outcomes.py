"""What the outcomes of single tests say together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._gpu.kernel_counts import Planned
from benchmarks._gpu.process import Ended
from benchmarks._gpu.selected_tests import FAILED, PASSED, SKIPPED

Outcomes = Mapping[str, Mapping[str, str]]
MEMCHECK_ERROR = 9
"""The exit status that memcheck is told to have where it found an error."""
MEMCHECK_FOUND = "found errors"
TAIL = 800
"""Characters of a log that are recorded."""


def read_outcomes(path: Path) -> dict[str, dict[str, str]]:
    """By test, what `selected_tests` has written; a test that has begun may have no outcome."""
    found: dict[str, dict[str, str]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # The last line, while it is written.
        found.setdefault(entry["test"], {}).update(entry)
    return found


def summarise(tests: Iterable[str], outcomes: Outcomes) -> dict[str, Any]:
    """Counts, and the names of the tests that failed or have no outcome."""
    passed, failed, unfinished = 0, list[str](), list[str]()
    why, skipped = dict[str, str](), Counter[str]()
    for test in tests:
        outcome = outcomes.get(test, {})
        how = outcome.get("outcome")
        if how == PASSED:
            passed += 1
        elif how == FAILED:
            failed.append(test)
            why[test] = outcome["why"]
        elif how == SKIPPED:
            skipped[outcome["why"]] += 1
        else:
            unfinished.append(test)
            if "why" in outcome:
                why[test] = outcome["why"]
    return {
        "passed": passed,
        "failed": failed,
        "skipped": dict(skipped),
        "unfinished": unfinished,
        "why": why,
    }


def judge_tests(
    plan: Mapping[str, Planned], plan_is_whole: bool, outcomes: Outcomes, memcheck: str
) -> dict[str, Any]:
    """The record of a run: `correct` and what it follows from.

    It is False where a test that decides failed or memcheck found errors; else None where not every
    such test has an outcome, or none passed; else True.
    """
    of_group: dict[str | None, list[str]] = {None: []}
    for test, planned in plan.items():
        of_group.setdefault(planned["ungated"], []).append(test)
    found = summarise(of_group.pop(None), outcomes)
    if memcheck.startswith(MEMCHECK_FOUND):
        found["failed"].append("memcheck")
    whole = plan_is_whole and found["passed"] > 0 and not found["unfinished"]
    ungated = {str(group): summarise(tests, outcomes) for group, tests in of_group.items()}
    return {
        "correct": False if found["failed"] else True if whole else None,
        **found,
        "ungated": ungated,
        "memcheck": memcheck,
    }


def describe_memcheck(ended: Ended, log: str) -> str:
    """What memcheck found. Only its own exit status for errors counts as a fault."""
    if ended.exit_status is None:
        return f"not finished after {ended.seconds:.0f} s"
    if ended.exit_status == MEMCHECK_ERROR:
        return f"{MEMCHECK_FOUND}: {log[-TAIL:]}"
    if ended.exit_status == 0 and "ERROR SUMMARY: 0 errors" in log:
        return f"no errors after {ended.seconds:.0f} s"
    return f"could not run (exit status {ended.exit_status}): {log[-TAIL:]}"


def report_lines(record: Mapping[str, Any]) -> list[str]:
    """A record in a few lines."""
    word = {True: "correct", False: "WRONG", None: "not known to be correct"}[record["correct"]]
    skipped: Mapping[str, int] = record["skipped"]
    failed: Sequence[str] = record["failed"]
    lines = [
        f"tests: {word}; {record['passed']} passed, {len(failed)} failed, "
        f"{sum(skipped.values())} skipped, {len(record['unfinished'])} unfinished"
    ]
    lines += [f"  failed: {name}: {record['why'].get(name, '')[:200]}" for name in failed[:20]]
    lines += [f"  skipped {count}: {reason[:200]}" for reason, count in skipped.items()]
    for group, found in record["ungated"].items():
        lines.append(
            f"  {group} (decides nothing): {found['passed']} passed, "
            f"{len(found['failed'])} failed, {len(found['unfinished'])} unfinished"
        )
    lines.append(f"  memcheck: {record['memcheck'][:200]}")
    return lines
