"""The picture of the hot path: time and memory of every way as M and N grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.variants import NAMES

Rows = list[dict[str, Any]]
COLOURS = dict(zip(NAMES, ("black", "C0", "C4", "C2", "C1", "C3"), strict=True))
MEASURES = (
    ("seconds", 1000.0, 0.0, "forward and backward, ms"),
    # A run that fits into memory that was there needs none, which has no logarithm.
    ("extra_mb", 1.0, 1.0, "extra memory, MB"),
)
"""What is drawn: its name in a row, its scale, the least that is shown, and what it is."""


def save_curves(path: Path, rows: Rows) -> None:
    """Draw against N at the M that most shapes share, and against M likewise, both in log-log."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), squeeze=False, layout="constrained")
    for column, (grown, fixed) in enumerate((("entries", "anchors"), ("anchors", "entries"))):
        chosen = _largest_series(rows, grown, fixed)
        for row, (measure, scale, least, label) in enumerate(MEASURES):
            _draw(axes[row, column], chosen, grown, measure, scale, least)
            axes[row, column].set_ylabel(label)
        letters, first = {"entries": "N", "anchors": "M"}, chosen[0]
        axes[1, column].set_xlabel(f"{letters[grown]}, {grown}")
        axes[0, column].set_title(
            f"{letters[fixed]} = {first[fixed]:,}, D = {first['dim']}, {first['classes']} classes"
        )
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    names = [name for name in NAMES if name in drawn]
    figure.legend(
        [drawn[name] for name in names], names, loc="outside lower center", ncols=len(NAMES)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw(axis: Axes, rows: Rows, grown: str, measure: str, scale: float, least: float) -> None:
    for name in NAMES:
        points = [
            (row[grown], max(scale * row["measured"][name][measure], least))
            for row in rows
            if name in row["measured"] and row["measured"][name][measure] is not None
        ]
        if points:
            # Only with something to show: a logarithmic axis of nothing is an error.
            axis.loglog(*zip(*points, strict=True), "o-", color=COLOURS[name], label=name)
    sizes = [row[grown] for row in rows]
    axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)


def _largest_series(rows: Rows, grown: str, fixed: str) -> Rows:
    """The rows that differ in `grown` alone, as many as there are, the smallest first."""
    series: dict[tuple[int, ...], Rows] = {}
    for row in rows:
        series.setdefault((row[fixed], row["dim"], row["classes"]), []).append(row)
    longest: Rows = []
    for found in series.values():
        longest = found if len(found) > len(longest) else longest
    return sorted(longest, key=lambda row: int(row[grown]))
