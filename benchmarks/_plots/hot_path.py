"""The picture of the hot path: time, and memory or the rate, of every way as the problem grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._plots.canvas import grid, save
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
TIME = ("seconds", 1000.0, 0.0, "forward and backward, ms")
"""What is drawn: its name in a row, its scale, the least that is shown, and its label."""
# A run that fits into allocated memory needs 0 MB, which has no logarithm.
MEMORY = ("extra_mb", 1.0, 1.0, "extra memory, MB")
RATE = ("tflops", 1.0, 0.0, "useful TFLOP/s")
Measure = tuple[str, float, float, str]


def save_curves(path: Path, rows: Rows) -> None:
    """Draw the rows of a record of the CPU or of a GPU, in log-log."""
    rows = [row for row in rows if row["measured"]]
    if not rows:
        return
    on_gpu = any("info_nce" in row["measured"] for row in rows)
    if not on_gpu:  # problems without a bank have no N to draw against
        rows = [row for row in rows if row["entries"] is not None]
        if not rows:
            return
    figure = _gpu_figure(rows) if on_gpu else _cpu_figure(rows)
    drawn = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    names = [name for name in COLOURS if name in drawn]
    if names:
        figure.legend([drawn[name] for name in names], names, loc="outside lower center", ncols=6)
    save(figure, path, dpi=150)


def _cpu_figure(rows: Rows) -> Figure:
    """Against N at the M that most shapes share, and against M likewise."""
    figure, axes = grid(2, 2, (10, 7.5))
    letters = {"entries": "N", "anchors": "M"}
    for column, (grown, fixed) in enumerate((("entries", "anchors"), ("anchors", "entries"))):
        series: dict[tuple[int, ...], Rows] = {}
        for row in rows:
            series.setdefault((row[fixed], row["dim"], row["classes"]), []).append(row)
        longest = max(series.values(), key=lambda found: len(found))
        chosen = sorted(longest, key=lambda row, grown=grown: int(row[grown]))  # type: ignore[misc]
        first, sizes = chosen[0], [row[grown] for row in chosen]
        for axis, measure in zip(axes[:, column], (TIME, MEMORY), strict=True):
            _draw(axis, chosen, sizes, CPU_WAYS, measure)
            axis.set_ylabel(measure[3])
            axis.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
            axis.set_xticks([], minor=True)
        axes[1, column].set_xlabel(f"{letters[grown]}, {grown}")
        axes[0, column].set_title(
            f"{letters[fixed]} = {first[fixed]:,}, D = {first['dim']}, {first['classes']} classes"
        )
    return figure


def _gpu_figure(rows: Rows) -> Figure:
    """A column for each mode: times and rates at the D that most cases share."""
    figure, axes = grid(2, len(MODES), (14, 8))
    dims = [row["dim"] for row in rows]
    dim = max(sorted(set(dims), reverse=True), key=dims.count)
    for column, mode in enumerate(MODES):
        for axis, measure in zip(axes[:, column], (TIME, RATE), strict=True):
            for style, itself in (("o-", False), ("o--", True)):
                part = [
                    row
                    for row in rows
                    if (row["mode"], row["dim"], row["entries"] is None) == (mode, dim, itself)
                ]
                sizes = [row["anchors"] * (row["entries"] or row["anchors"]) for row in part]
                _draw(axis, part, sizes, tuple(COLOURS), measure, style)
            if column == 0:
                axis.set_ylabel(measure[3])
        axes[0, column].set_title(f"{mode}, D = {dim}")
        axes[1, column].set_xlabel("M·N (dashed: against itself)")
    return figure


def _draw(
    axis: Axes,
    rows: Rows,
    sizes: Sequence[int],
    names: Sequence[str],
    measure: Measure,
    style: str = "o-",
) -> None:
    key, scale, least, _ = measure
    for name in names:
        found = [row["measured"].get(name, {}).get(key) for row in rows]
        points = sorted(
            (size, max(scale * value, least))
            for size, value in zip(sizes, found, strict=True)
            if value is not None
        )
        if points:
            # A logarithmic axis without a point raises.
            axis.loglog(*zip(*points, strict=True), style, color=COLOURS[name], label=name)
    axis.grid(alpha=0.3)
