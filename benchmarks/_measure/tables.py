"""Format a row of a record as a table: a line for each implementation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._tables.text import TextTable, number

FIGURES = {
    "seconds": ("ms", 1000.0, 3),
    "spread": ("spread", 1.0, 2),
    "to_floor": ("x floor", 1.0, 2),
    "to_step": ("x step", 1.0, 2),
    "to_loss": ("x loss", 1.0, 2),
    "tflops": ("TFLOP/s", 1.0, 2),
    "of_square": ("of square", 1.0, 3),
    "waits": ("waits", 1.0, 0),
    "launches": ("launches", 1.0, 0),
    "extra_mb": ("extra MB", 1.0, 0),
    "error": ("error", 1.0, 7),
}
"""By name in a record: the word for a figure, a factor, and the number of decimals."""


def table(title: str, row: Mapping[str, Any]) -> str:
    """Return a table of the figures that any implementation has, and why others are missing."""
    measured: Mapping[str, Mapping[str, Any]] = row["measured"]
    known = [name for name in FIGURES if any(name in one for one in measured.values())]
    cells = [
        [way, *(_cell(one.get(name), name) for name in known)] for way, one in measured.items()
    ]
    wrong = ", WRONG" if row.get("correct") is False else ""
    lines = TextTable((title + wrong, *(FIGURES[name][0] for name in known)), cells).aligned()
    missing = {way: one["status"] for way, one in measured.items() if "status" in one}
    missing |= row.get("skipped") or {}
    reasons = [f"  {way}: {reason}" for way, reason in missing.items()]
    return "\n".join([lines, *reasons, *([f"  {row['note']}"] * bool(row.get("note")))])


def _cell(figure: Any, name: str) -> str:
    _, factor, digits = FIGURES[name]
    return number(factor * figure if isinstance(figure, (int, float)) else None, digits)
