"""The picture of the hot path: time, and memory or the rate, of every way as the problem grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._ways.problem import MODES
from benchmarks._ways.ways import CPU_WAYS

Rows = list[dict[str, Any]]
COLOURS = {
    "floor": "black",
    "tiled": "C0",
    "mined": "C4",
    "compiled": "C2",
    "dense": "C1",
    "authors": "C3",
    "info_nce": "C9",
    "info_nce replayed": "C8",
    "unit length replayed": "C4",
    "sdpa": "grey",
    "flex": "C5",
    "authors autocast": "C6",
}
CPU_MEASURES = (
    ("seconds", 1000.0, 0.0, "forward and backward, ms"),
    # A run that fits into allocated memory needs 0 MB, which has no logarithm.
    ("extra_mb", 1.0, 1.0, "extra memory, MB"),
)
"""What is drawn: its name in a row, its scale, the least that is shown, and its label."""
GPU_MEASURES = (
    ("seconds", 1000.0, 0.0, "forward and backward, ms"),
    ("tflops", 1.0, 0.0, "useful TFLOP/s"),
)
Measure = tuple[str, float, float, str]


def save_curves(path: Path, rows: Rows) -> None:
    """Draw the rows of a record of the CPU or of a GPU, in log-log."""
    rows = [row for row in rows if row["measured"]]
    if not rows:
        return
    on_gpu = any("info_nce" in row["measured"] for row in rows)
    figure = _gpu_figure(rows) if on_gpu else _cpu_figure(rows)
    drawn = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    names = [name for name in COLOURS if name in drawn]
    if names:
        figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _cpu_figure(rows: Rows) -> Figure:
    """Against N at the M that most shapes share, and against M likewise."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), squeeze=False, layout="constrained")
    for column, (grown, fixed) in enumerate((("entries", "anchors"), ("anchors", "entries"))):
        chosen = _largest_series(rows, grown, fixed)
        for axis, measure in zip(axes[:, column], CPU_MEASURES, strict=True):
            _draw(axis, chosen, CPU_WAYS, measure, lambda row, grown=grown: row[grown])  # type: ignore[misc]
            axis.set_ylabel(measure[3])
            sizes = [row[grown] for row in chosen]
            axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
            axis.set_xticks([], minor=True)
        letters, first = {"entries": "N", "anchors": "M"}, chosen[0]
        axes[1, column].set_xlabel(f"{letters[grown]}, {grown}")
        axes[0, column].set_title(
            f"{letters[fixed]} = {first[fixed]:,}, D = {first['dim']}, {first['classes']} classes"
        )
    return figure


def _gpu_figure(rows: Rows) -> Figure:
    """A column for each mode: times and rates at the D that most cases share."""
    figure, axes = plt.subplots(2, len(MODES), figsize=(14, 8), squeeze=False, layout="constrained")
    dims = [row["dim"] for row in rows]
    dim = max(sorted(set(dims), reverse=True), key=dims.count)
    for column, mode in enumerate(MODES):
        chosen = [row for row in rows if row["mode"] == mode and row["dim"] == dim]
        for axis, measure in zip(axes[:, column], GPU_MEASURES, strict=True):
            for style, itself in (("o-", False), ("o--", True)):
                part = [row for row in chosen if (row["entries"] is None) == itself]
                _draw(axis, part, tuple(COLOURS), measure, _similarities, style)
        axes[0, column].set_title(f"{mode}, D = {dim}")
        axes[1, column].set_xlabel("M·N (dashed: against itself)")
    for axis, measure in zip(axes[:, 0], GPU_MEASURES, strict=True):
        axis.set_ylabel(measure[3])
    return figure


def _draw(
    axis: Axes,
    rows: Rows,
    names: Sequence[str],
    measure: Measure,
    size: Callable[[dict[str, Any]], float],
    style: str = "o-",
) -> None:
    key, scale, least, _ = measure
    for name in names:
        found = ((size(row), row["measured"].get(name, {}).get(key)) for row in rows)
        points = sorted((at, max(scale * value, least)) for at, value in found if value is not None)
        if points:
            # A logarithmic axis without a point raises.
            axis.loglog(*zip(*points, strict=True), style, color=COLOURS[name], label=name)
    axis.grid(alpha=0.3)


def _similarities(row: dict[str, Any]) -> float:
    return float(row["anchors"] * (row["entries"] or row["anchors"]))


def _largest_series(rows: Rows, grown: str, fixed: str) -> Rows:
    """Return the rows that differ in `grown` alone, as many as there are, the smallest first."""
    series: dict[tuple[int, ...], Rows] = {}
    for row in rows:
        series.setdefault((row[fixed], row["dim"], row["classes"]), []).append(row)
    longest = max(series.values(), key=len)
    return sorted(longest, key=lambda row: int(row[grown]))
