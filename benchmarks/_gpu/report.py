"""What a run prints at its end, short enough to come back whole from any machine."""

from __future__ import annotations

from typing import Any

from benchmarks._gpu.runner import DONE, Runner
from benchmarks._measure.tables import remarks, table

MOST_CHARACTERS, MOST_CASES, MOST_LINES = 11_500, 14, 20


def report(runner: Runner) -> str:
    """Return the main figures, then the verdict, then where the time went."""
    correct, failed = runner.verdict()
    words = {True: "yes", False: "NO", None: "not known, a check did not finish"}[correct]
    lines = [f"correct: {words}", *_first([f"  wrong: {name}" for name in failed])]
    times = [f"{'stage':<12}{'status':<14}{'seconds':>8}{'limit':>7}"]
    times.append(f"{'(start)':<26}{runner.before:>8.1f}")
    for name, one in runner.outcomes.items():
        tail = one.get("log_tail", "").strip().splitlines()
        if one["status"] != DONE:
            lines.append(f"  {name}: {one['status']}; {tail[-1][:120] if tail else 'no output'}")
        times.append(f"{name:<12}{one['status']:<14}{one['seconds']:>8.1f}{one['limit']:>7.0f}")
    end = "\n".join([*lines, *times])
    return f"{first_lines(_figures(runner), MOST_CHARACTERS - len(end))}\n{end}"


def first_lines(text: str, characters: int) -> str:
    """Return the whole lines at the start of a text that fit; the last one says if some do not."""
    if len(text) <= characters:
        return text
    return text[: max(0, characters - 4)].rpartition("\n")[0] + "\n..."


def _figures(runner: Runner) -> str:
    """Return the tables of the hot path, the steps and their profile, and what the tests found."""
    records = {stage.name: runner.record_of(stage) for stage in runner.stages}
    lines: list[str] = []
    for name in ("headlines", "steps", "launches", "tests"):
        record = records.get(name)
        try:
            if record is not None:
                lines += _tests(record) if name == "tests" else _table(name, record)
        except (AttributeError, KeyError, TypeError) as error:
            # The figures are in the record, and the verdict must be printed.
            lines.append(f"{name}: no table, the record has another form ({error!r})")
    return "\n".join(lines)


def _table(name: str, record: dict[str, Any]) -> list[str]:
    title = "{mode} {anchors} x {entries} x {dim}" if name == "headlines" else "{name}, {case}"
    figures = {"headlines": ["seconds", "of_square"], "steps": ["seconds"]}
    found = record["rows" if name == "headlines" else "steps"]
    rows = {title.format(**row): row for row in found}
    measured = {case: row for case, row in rows.items() if row["measured"]}
    chosen = dict(list(measured.items())[:MOST_CASES])
    shown = table(chosen, figures.get(name, ["waits", "launches", "extra_mb"]))
    return [f"== {name}", *shown, *_first(remarks(rows), 12)]


def _tests(record: dict[str, Any]) -> list[str]:
    counts = f"tests: {record.get('passed')} passed, {len(record.get('failed', []))} failed"
    return [counts, *(f"  {key}: {record.get(key)}"[:300] for key in ("ungated", "memcheck"))]


def _first(lines: list[str], most: int = MOST_LINES) -> list[str]:
    left_out = len(lines) - most
    more = [f"  and {left_out} more, see the records"] * (left_out > 0)
    return [line[:120] for line in lines[:most]] + more
