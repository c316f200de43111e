"""The figures of the hot path on a GPU as lines to read."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_ways import Case

Row = dict[str, Any]


def table_head() -> list[str]:
    """What the columns are."""
    return [
        f"{'mode, M x N x D':<34}{'way':<18}{'forward ms':>11}{'both ms':>10}{'spread':>8}"
        f"{'x fused':>9}{'TFLOP/s':>9}{'of square':>11}{'of products':>12}{'extra MB':>10}"
    ]


def row_lines(row: Row) -> list[str]:
    """A line for each way of a case, or the one thing there is to say of it."""
    title = title_of(row)
    lines: list[str] = []
    for way, parts in row["measured"].items():
        lines.append(f"{title:<34}{way:<18}{_figures(parts)}".rstrip())
        title = ""
    if row["note"] is not None:
        lines.append(f"{title:<34}{row['note']}")
    return lines


def title_of(row: Row) -> str:
    """The case as it is written everywhere."""
    names = ("mode", "anchors", "entries", "dim", "classes")
    return str(Case(**{name: row[name] for name in names}))


def _figures(parts: dict[str, Any]) -> str:
    forward, both = parts.get("forward", {}), parts.get("both", {})
    if "seconds" not in forward and "seconds" not in both:
        return f" {both.get('status', forward.get('status', ''))}"
    return (
        f"{_cell(_ms(forward), 11, 3)}{_cell(_ms(both), 10, 3)}{_cell(both.get('spread'), 8, 2)}"
        f"{_cell(parts.get('to_fused'), 9, 2)}{_cell(parts.get('tflops'), 9, 1)}"
        f"{_cell(parts.get('of_square'), 11, 2)}{_cell(parts.get('of_products'), 12, 2)}"
        f"{_cell(both.get('extra_mb'), 10, 0)}"
        f"{'' if 'seconds' in both else '  ' + both.get('status', '')}"
    )


def _ms(part: dict[str, Any]) -> float | None:
    return 1000 * part["seconds"] if "seconds" in part else None


def _cell(figure: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if figure is None else f"{figure:>{width}.{digits}f}"
