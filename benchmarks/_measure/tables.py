"""Format the rows of records as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks._measure.command import cell
from benchmarks._ways.problem import Case

Row = dict[str, Any]
Columns = tuple[tuple[str, str, int, float, int], ...]
"""Of each column its heading, its name in a record, its width, a factor and the digits."""

HOT_PATH_COLUMNS: Columns = (
    ("ms", "seconds", 10, 1000.0, 3),
    ("spread", "spread", 8, 1.0, 2),
    ("x floor", "to_floor", 9, 1.0, 2),
    ("x tiled", "to_tiled", 9, 1.0, 2),
    ("x ours", "to_info_nce", 9, 1.0, 2),
    ("TFLOP/s", "tflops", 9, 1.0, 2),
    ("of square", "of_square", 11, 1.0, 2),
    ("of floor", "of_floor", 10, 1.0, 2),
    ("extra MB", "extra_mb", 10, 1.0, 0),
)
STEP_COLUMNS: Columns = (
    ("ms", "seconds", 10, 1000.0, 3),
    ("spread", "spread", 8, 1.0, 2),
    ("x step", "to_step", 8, 1.0, 2),
    ("x loss", "to_loss", 8, 1.0, 2),
    ("extra MB", "extra_mb", 10, 1.0, 0),
    ("waits", "waits", 7, 1.0, 0),
    ("launches", "launches", 10, 1.0, 0),
)
SAMPLER_COLUMNS: Columns = (
    ("ms", "seconds", 9, 1000.0, 1),
    ("x ours", "to_sampler", 8, 1.0, 2),
    ("spread", "spread", 8, 1.0, 2),
)


def hot_path_head() -> str:
    """Return the headings of `hot_path_lines`."""
    return _head("mode, M x N x D", 34, HOT_PATH_COLUMNS) + f"{'error':>10}"


def hot_path_lines(row: Row) -> Iterator[str]:
    """Return a line for each implementation of a case."""
    names = ("mode", "anchors", "entries", "dim", "classes")
    title = str(Case(**{name: row[name] for name in names}))
    for line, one in _lines(title, 34, row, HOT_PATH_COLUMNS):
        error = one.get("error")
        wrong = " wrong" if one.get("correct") is False else ""
        yield line + ("" if error is None else f"{error:>10.1e}{wrong}")


def step_head() -> str:
    """Return the headings of `step_lines`."""
    return _head("shape, case", 24, STEP_COLUMNS)


def step_lines(row: Row) -> Iterator[str]:
    """Return a line for each implementation of a step."""
    yield from (line for line, _ in _lines(f"{row['name']}, {row['case']}", 24, row, STEP_COLUMNS))


def part_lines(row: Row) -> Iterator[str]:
    """Return a line for each part of our step."""
    parts = row.get("parts", {})
    title, whole = f"{row['name']}, {row['case']}", sum(parts.values())
    for part, seconds in parts.items():
        if seconds > 0.0:  # without a bank nothing is spent on it
            yield f"{title:<24}{part:<26}{1000 * seconds:>9.1f} ms{seconds / whole:>8.0%}"
            title = ""


def sampler_lines(row: Row) -> Iterator[str]:
    """Return a line for each sampler."""
    title = f"{row['images']} x {row['pixels']}, {row['classes']} classes, {row['labels']}"
    yield from (line for line, _ in _lines(title, 38, row, SAMPLER_COLUMNS))


def _head(title: str, width: int, columns: Columns) -> str:
    headings = "".join(f"{heading:>{at}}" for heading, _, at, _, _ in columns)
    return f"{title:<{width}}{'way':<28}{headings}"


def _lines(title: str, width: int, row: Row, columns: Columns) -> Iterator[tuple[str, Row]]:
    for name, one in row["measured"].items():
        if "status" in one:
            figures = f"  {one['status']}"
        else:
            figures = "".join(
                cell(_scaled(one.get(key), factor), at, digits)
                for _, key, at, factor, digits in columns
            )
        yield f"{title:<{width}}{name:<28}{figures}", one
        title = ""
    for name, words in row.get("skipped", {}).items():
        yield f"{title:<{width}}{name:<28}  skipped: {words}", {}
        title = ""
    if row.get("note") is not None:
        yield f"{title:<{width}}{row['note']}", {}


def _scaled(figure: float | str | None, factor: float) -> float | None:
    return None if figure is None or isinstance(figure, str) else factor * figure
