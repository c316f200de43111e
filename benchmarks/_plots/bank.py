"""How a bank fills during training: written slots of each class, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._plots.canvas import GREY, class_colors, grid, save
from benchmarks._training.data import SegmentationData
from pixcontrast import PixelContrastLoss

DENSE_STEPS, SPARSE_STEPS = 20, 10
"""Every step up to the first number is recorded, then every so many; classes fill up early."""


@dataclass(frozen=True)
class Occupancy:
    """Number of entries of each class in each queue after some steps, and number of slots."""

    steps: list[int] = field(default_factory=list)
    pixels: list[list[int]] = field(default_factory=list)
    regions: list[list[int]] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)

    def observe(self, step: int, criterion: PixelContrastLoss) -> None:
        """Record the bank of a loss that has just been called."""
        bank = criterion.bank
        if bank is None or (step >= DENSE_STEPS and step % SPARSE_STEPS):
            return
        self.steps.append(step + 1)
        self.pixels.append(bank.pixel_count.tolist())
        self.regions.append(bank.region_count.tolist())
        self.slots.update(pixels=bank.pixel_slots, regions=bank.region_slots)


def save_occupancy(path: Path, data: SegmentationData, occupancy: Occupancy) -> None:
    """Draw a panel for each queue with a line for each class."""
    figure, axes = grid(1, 2, (9, 3.4))
    axes[0, 1].sharey(axes[0, 0])
    for axis, queue in zip(axes[0], ("pixels", "regions"), strict=True):
        counts: list[list[int]] = getattr(occupancy, queue)
        for index, (name, color) in enumerate(class_colors(data).items()):
            axis.plot(occupancy.steps, [row[index] for row in counts], label=name, color=color)
        axis.set_title(f"{queue}, {occupancy.slots[queue]} slots a class", fontsize=9)
        axis.set_xscale("log")
        axis.set_xlabel("step")
        axis.set_facecolor(GREY)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("entries")
    legend = axes[0, 0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside right center", fontsize=7)
    save(figure, path, dpi=100)
