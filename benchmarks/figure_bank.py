"""The picture of a bank as it fills: how many slots of each class are written, step by step."""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.data import SegmentationData
from pixcontrast import PixelContrastLoss


@dataclass(frozen=True)
class Occupancy:
    """How many entries each class has in each queue after each step, and how many it can have."""

    pixels: list[list[int]] = field(default_factory=list)
    regions: list[list[int]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)

    def observe(self, step: int, criterion: PixelContrastLoss) -> None:
        """Look at the bank of a loss that has just been called."""
        bank = criterion.bank
        if bank is None:
            return
        self.pixels.append(bank.pixel_count.tolist())
        self.regions.append(bank.region_count.tolist())
        self.slots.update(pixels=bank.pixel_slots, regions=bank.region_slots)


def save_occupancy(path: Path, data: SegmentationData, occupancy: Occupancy) -> None:
    """Draw a line a class, a panel a queue, up to the step at which the last class is full."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    _draw(axes[0], data, occupancy.pixels, f"pixels, {occupancy.slots['pixels']} slots a class")
    _draw(axes[1], data, occupancy.regions, f"regions, {occupancy.slots['regions']} slots a class")
    axes[0].set_ylabel("entries")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axes: Axes, data: SegmentationData, counts: list[list[int]], title: str) -> None:
    for number, name in enumerate(data.class_names):
        red, green, blue = (part / 255 for part in data.class_colours[number])
        line = [of_step[number] for of_step in counts]
        axes.plot(range(1, len(line) + 1), line, label=name, color=(red, green, blue))
    axes.set_xscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
