"""Format the rows of records as tables: implementations as columns, figures as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
FIGURES = {
    "seconds": ("ms", 1000.0, 3),
    "spread": ("spread", 1.0, 2),
    "to_floor": ("x floor", 1.0, 2),
    "to_step": ("x step", 1.0, 2),
    "to_loss": ("x loss", 1.0, 2),
    "tflops": ("TFLOP/s", 1.0, 2),
    "of_square": ("of square", 1.0, 2),
    "extra_mb": ("extra MB", 1.0, 0),
    "error": ("error", 1.0, 7),
}
"""By name in a record: the word for a figure, a factor, and the number of decimals."""
SHORT = {
    "info_nce replayed": "graph",
    "unit length": "losses'",
    "unit length replayed": "graph",
    "authors autocast": "autocast",
}
"""Headings of the implementations whose names are too long."""


def table(rows: Mapping[str, Row], figures: Sequence[str] = tuple(FIGURES)) -> list[str]:
    """Return a heading and, for each row, a line for each figure that any implementation has."""
    ways = list(dict.fromkeys(way for row in rows.values() for way in row["measured"]))
    lines = [f"{'':<40}" + "".join(f"{SHORT.get(way, way):>12}" for way in ways)]
    for title, row in rows.items():
        measured = row["measured"]
        known = [name for name in figures if any(name in one for one in measured.values())]
        for number, name in enumerate(known):
            cells = "".join(f"{_cell(measured.get(way), name):>12}" for way in ways)
            wrong = "  WRONG" if number == 0 and row.get("correct") is False else ""
            lines.append(f"{title if number == 0 else '':<30}{FIGURES[name][0]:>10}{cells}{wrong}")
    return lines


def remarks(rows: Mapping[str, Row]) -> list[str]:
    """Return why figures are missing."""
    found = []
    for title, row in rows.items():
        reasons = {way: one["status"] for way, one in row["measured"].items() if "status" in one}
        reasons |= row.get("skipped") or {}
        found += [f"  {title}: {way}: {reason}" for way, reason in reasons.items()]
        if row.get("note"):
            found.append(f"  {title}: {row['note']}")
    return found


def _cell(one: Row | None, name: str) -> str:
    if one is None or "status" in one:
        return "-" if one is None else "failed"
    figure, (_, factor, digits) = one.get(name), FIGURES[name]
    return f"{factor * figure:.{digits}f}" if isinstance(figure, (int, float)) else "-"
