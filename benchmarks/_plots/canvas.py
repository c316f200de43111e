"""Matplotlib without a display, and what the pictures share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks._training.data import SegmentationData

GREY = "0.85"
"""A background on which classes drawn almost white are visible."""


def grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """Make a figure with a (rows, columns) array of axes; `size` is in inches."""
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def save(figure: Figure, path: Path, dpi: int = 90) -> None:
    """Write a figure to a file and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)


def class_colors(data: SegmentationData) -> dict[str, tuple[float, float, float]]:
    """Return the colors of the classes by name, with components from 0 to 1."""
    return {
        name: (red / 255, green / 255, blue / 255)
        for name, (red, green, blue) in data.classes.items()
    }


def scatter_pixels(axis: Axes, pixels: Tensor, width: int, **style: Any) -> None:
    """Draw points at the centers of pixels, given as indices into a flat map of that width."""
    places = pixels.numpy()
    axis.scatter(places % width + 0.5, places // width + 0.5, **style)
