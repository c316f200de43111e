"""Matplotlib without a display, what the pictures share, and the picture of an ablation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks._tables.pairs import lines_of
from benchmarks._training.data import SegmentationData
from benchmarks._training.protocol import Table
from benchmarks._training.runs import Runs

GREY = "0.85"
"""A background on which classes drawn almost white are visible."""


def grid(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """Make a figure with a (rows, columns) array of axes; `size` is in inches."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def save(figure: Figure, path: Path, dpi: int = 90) -> None:
    """Write a figure to a file and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def class_colors(data: SegmentationData) -> dict[str, Any]:
    """Return the colors of the classes by name, with components from 0 to 1."""
    return {name: [part / 255 for part in color] for name, color in data.classes.items()}


def save_differences(path: Path, table: Table, runs: Runs) -> None:
    """Draw the differences to the first row: a dot a seed, the mean, two standard errors."""
    lines = [line for line in lines_of(table, runs)[:0:-1] if line.differences]
    figure, ((axes,),) = grid(1, 1, (7, 1.2 + 0.45 * len(lines)))
    for height, line in enumerate(lines):
        axes.plot(line.differences, [height] * len(line.differences), "o", color="C0", alpha=0.35)
        mean, error = line.compared.difference, line.compared.standard_error
        bars = None if math.isnan(error) else 2 * error
        axes.errorbar(mean, height, xerr=bars, fmt="D", color="C3", capsize=4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(lines)), labels=[line.name for line in lines])
    axes.set_ylim(-0.6, max(len(lines), 1) - 0.4)
    axes.set_xlabel(f"mean IoU, difference to {next(iter(table.rows))} of the same seed, points")
    axes.set_title(f"{table.title}: dots are seeds, bars two standard errors", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    save(figure, path, dpi=110)
