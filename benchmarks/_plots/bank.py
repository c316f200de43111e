"""The picture of a bank as it fills: how many slots of each class are written, step by step."""

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks._training.data import SegmentationData
from pixcontrast import PixelContrastLoss

DENSE_STEPS, SPARSE_STEPS = 20, 10


@dataclass(frozen=True)
class Occupancy:
    """How many entries each class has in each queue after some steps, and how many it can have."""

    steps: list[int] = field(default_factory=list)
    pixels: list[list[int]] = field(default_factory=list)
    regions: list[list[int]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)

    def observe(self, step: int, criterion: PixelContrastLoss) -> None:
        """Look at the bank of a loss that has just been called."""
        bank = criterion.bank
        # At the start a class may fill in a few steps; later a step says little.
        if bank is None or (step >= DENSE_STEPS and step % SPARSE_STEPS):
            return
        self.steps.append(step + 1)
        self.pixels.append(bank.pixel_count.tolist())
        self.regions.append(bank.region_count.tolist())
        self.slots.update(pixels=bank.pixel_slots, regions=bank.region_slots)


def save_occupancy(path: Path, data: SegmentationData, occupancy: Occupancy) -> None:
    """Draw a line a class and a panel a queue, over the steps of the training."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, queue in zip(axes, ("pixels", "regions"), strict=True):
        _draw(axis, data, occupancy.steps, getattr(occupancy, queue))
        axis.set_title(f"{queue}, {occupancy.slots[queue]} slots a class", fontsize=9)
    axes[0].set_ylabel("entries")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw(axes: Axes, data: SegmentationData, steps: list[int], counts: list[list[int]]) -> None:
    for number, name in enumerate(data.class_names):
        red, green, blue = (part / 255 for part in data.class_colours[number])
        line = [of_step[number] for of_step in counts]
        axes.plot(steps, line, label=name, color=(red, green, blue))
    axes.set_xscale("log")
    axes.set_xlabel("step")
    axes.set_facecolor("0.85")  # some classes are drawn nearly white
    axes.grid(alpha=0.3)
