"""The picture of the hot path on a GPU: time against size, and the share of what the card can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.gpu_ways import MODES, WAYS

Rows = list[dict[str, Any]]
DRAWN = (*WAYS, "products")
COLOURS = dict(zip(DRAWN, ("C0", "C4", "C1", "C2", "C3", "C6", "black"), strict=True))


def save_gpu_curves(path: Path, rows: Rows) -> None:
    """A column for each mode: forward and backward, and rates, at the D that most cases share."""
    dims = [row["dim"] for row in rows if row["measured"]]
    if not dims:
        return
    dim = max(sorted(set(dims), reverse=True), key=dims.count)
    figure, axes = plt.subplots(2, len(MODES), figsize=(14, 8), squeeze=False, layout="constrained")
    for column, mode in enumerate(MODES):
        chosen = [row for row in rows if row["mode"] == mode and row["dim"] == dim]
        _draw(axes[0, column], chosen, lambda parts: _seconds(parts))
        _draw(axes[1, column], chosen, lambda parts: parts.get("tflops"))
        axes[0, column].set_title(f"{mode}, D = {dim}")
        axes[1, column].set_xlabel("M·N (dashed: against itself)")
    axes[0, 0].set_ylabel("forward and backward, ms")
    axes[1, 0].set_ylabel("useful TFLOP/s")
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    names = [name for name in DRAWN if name in drawn]
    if names:
        handles = [drawn[name] for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=len(DRAWN))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axis: Axes, rows: Rows, figure_of: Any) -> None:
    for itself in (False, True):
        for name in DRAWN:
            points = sorted(
                (row["anchors"] * (row["entries"] or row["anchors"]), figure)
                for row in rows
                if (row["entries"] is None) == itself
                and (figure := figure_of(row["measured"].get(name, {})))
            )
            if points:
                style = "o--" if itself else "o-"
                axis.loglog(*zip(*points, strict=True), style, color=COLOURS[name], label=name)
    axis.grid(alpha=0.3)


def _seconds(parts: dict[str, Any]) -> float | None:
    seconds = parts.get("both", {}).get("seconds")
    return None if seconds is None else 1000 * seconds
