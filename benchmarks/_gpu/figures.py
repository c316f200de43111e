"""The main figures of the records as tables of a few lines; everything else is in the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks._gpu.records import Record

Row = Mapping[str, Any]
MOST_CASES, MOST_REMARKS = 24, 12
HOT_PATH_WAYS = {
    "info_nce": "eager",
    "info_nce replayed": "graph",
    "unit length": "losses'",
    "unit length replayed": "graph",
    "floor": "floor",
    "sdpa": "sdpa",
    "flex": "flex",
    "compiled": "compiled",
    "dense": "dense",
    "authors": "authors",
    "authors autocast": "autocast",
}
STEP_WAYS = {
    "step": "step",
    "replayed": "graph",
    "loss": "loss",
    "unmined": "unmined",
    "authors": "authors",
    "authors autocast": "autocast",
}
COUNTS = {"waits": "waits", "launches": "launches", "extra_mb": "MB"}
"""What a row's `measured` holds, by the heading of its column. Times are in milliseconds."""


def hot_path_lines(record: Record) -> list[str]:
    """A line for each case: forward and backward of every implementation."""
    head = _line("forward + backward, ms", [*HOT_PATH_WAYS.values(), "of square"])
    rows = [row for row in record["rows"] if row["measured"]]
    lines = [head]
    for row in rows[:MOST_CASES]:
        ours = row["measured"].get("unit length replayed", {})
        cells = [_milliseconds(row["measured"].get(way)) for way in HOT_PATH_WAYS]
        wrong = "  WRONG" if row.get("correct") is False else ""
        lines.append(_line(_case(row), [*cells, _number(ours.get("of_square"), 2)]) + wrong)
    return lines + _remarks((_case(row), row) for row in record["rows"])


def step_lines(record: Record, profile: Record | None) -> list[str]:
    """A line for each step: its implementations, and what ours makes the device do."""
    lines = [_line("step, ms", [*STEP_WAYS.values(), *COUNTS.values()])]
    profiled = {_step(row): row["measured"] for row in (profile or {}).get("steps", [])}
    for row in record["steps"]:
        ours = profiled.get(_step(row), {}).get("step", {})
        counts = [_number(ours.get(name), 0) for name in COUNTS]
        cells = [_milliseconds(row["measured"].get(way)) for way in STEP_WAYS]
        lines.append(_line(_step(row), [*cells, *counts]))
    return lines + _remarks((_step(row), row) for row in record["steps"])


def test_lines(record: Record) -> list[str]:
    """What the tests found that say something, and the rest in a few words."""
    counts = f"tests: {record.get('passed')} passed, {len(record.get('failed', []))} failed"
    return [counts, *(f"  {name}: {record.get(name)}"[:300] for name in ("ungated", "memcheck"))]


def _remarks(rows: Iterable[tuple[str, Row]]) -> list[str]:
    """Why figures are missing, of as many as fit."""
    found = []
    for name, row in rows:
        for way, one in row["measured"].items():
            if "status" in one:
                found.append(f"  {name}: {way}: {one['status']}"[:110])
        found += [f"  {name}: {row['note']}"[:110]] if row.get("note") else []
    left_out = len(found) - MOST_REMARKS
    return found[:MOST_REMARKS] + ([f"  and {left_out} more without figures"] * (left_out > 0))


def _case(row: Row) -> str:
    entries = "itself" if row["entries"] is None else f"{row['entries']:,}"
    return f"{row['mode']} {row['anchors']:,} x {entries} x {row['dim']}"


def _step(row: Row) -> str:
    return f"{row['name']}, {row['case']}"


def _line(title: str, cells: Sequence[str]) -> str:
    return f"{title:<28}" + "".join(f"{cell:>9}" for cell in cells)


def _milliseconds(one: Row | None) -> str:
    if one is None or "seconds" in one:
        return "-" if one is None else _number(1000 * one["seconds"], 3)
    return "memory" if one.get("status") == "out of memory" else "failed"


def _number(figure: object, digits: int) -> str:
    return f"{figure:.{digits}f}" if isinstance(figure, (int, float)) else "-"
