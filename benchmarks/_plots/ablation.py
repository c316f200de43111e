"""The picture of a table of the ablation: the difference of every pair, and their mean."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks._plots.canvas import grid, save
from benchmarks._tables.ablation import lines_of
from benchmarks._training.protocol import Table
from benchmarks._training.runs import Runs


def save_plot(path: Path, table: Table, runs: Runs) -> None:
    """Draw the differences to the first row: a dot a seed, the mean, two standard errors."""
    lines = [line for line in lines_of(table, runs)[1:] if line.differences]
    figure, grid_of_axes = grid(1, 1, (7, 1.2 + 0.45 * len(lines)))
    axes = grid_of_axes[0, 0]
    for height, line in enumerate(reversed(lines)):
        error = line.compared.standard_error
        axes.plot(line.differences, [height] * len(line.differences), "o", color="C0", alpha=0.35)
        axes.errorbar(
            line.compared.difference,
            height,
            xerr=None if math.isnan(error) else 2 * error,
            fmt="D",
            color="C3",
            capsize=4,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), labels=[line.name for line in reversed(lines)])
    axes.set_ylim(-0.6, max(len(lines), 1) - 0.4)
    axes.set_xlabel(f"mean IoU, difference to {table.rows[0].name} of the same seed, points")
    axes.set_title(f"{table.title}: dots are seeds, bars two standard errors", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    save(figure, path, dpi=110)
