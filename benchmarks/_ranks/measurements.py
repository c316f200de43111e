"""What one rank measures: the memory of a loss with a full bank."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from benchmarks._measure.device import measured_peak
from benchmarks._ranks.costs import Step, slots
from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler

Row = dict[str, Any]

SIDE = 16
"""Height and width of the embedding map."""
BASE = Step(ranks=1, images=2, anchors=128, dim=64, num_classes=8, pixels_per_image=4,
            pixel_slots=2048, region_slots=0, gather=False)  # fmt: skip
SIZES = (16, 32, 64)
"""Slots in all ranks together, relative to `BASE`: tiles of positives no longer grow with them."""


def bank_of(
    step: Step, dtype: torch.dtype = torch.float32, process_group: Any = None
) -> MemoryBank:
    """Make the empty bank of a step; of a sharded one, the shard of this rank."""
    return MemoryBank(
        step.num_classes,
        step.dim,
        pixel_slots=step.pixel_slots,
        region_slots=step.region_slots,
        pixels_per_image=step.pixels_per_image,
        dtype=dtype,
        sharded=step.sharded,
        process_group=process_group,
    )


class Case:
    """Forward and backward of a loss with a full bank of random unit vectors."""

    def __init__(self, step: Step) -> None:
        bank = bank_of(step)
        for of_class in bank.pixels:
            torch.nn.functional.normalize(torch.randn(of_class.shape), dim=1, out=of_class)
        bank.pixel_count.fill_(step.pixel_slots)
        sampler = RandomAnchorSampler(max_anchors=step.anchors)
        self.loss = PixelContrastLoss(
            anchor_sampler=sampler, bank=bank, contrast_with=("pixels",), update_bank=False
        )
        self.emb = torch.randn(step.images, step.dim, SIDE, SIDE, requires_grad=True)
        self.labels = torch.randint(0, step.num_classes, (step.images, SIDE, SIDE))

    def __call__(self) -> None:
        """Compute the loss and the gradient of the embeddings."""
        torch.autograd.grad(self.loss(self.emb, self.labels), self.emb)


def measure(group: Any, rank: int, ranks: int) -> list[Row]:
    """Measure the MB that a step needs beyond its bank and inputs. All ranks call it together."""
    sharded = ranks > 1
    rows = []
    for size in SIZES:
        own = size * BASE.pixel_slots // ranks
        step = replace(BASE, ranks=ranks, sharded=sharded, pixel_slots=own)
        Case(replace(step, pixel_slots=16))()  # libraries allocate on their first call
        case = Case(step)
        extra = statistics.median(measured_peak(case) for _ in range(3))
        row = {"ranks": ranks, "sharded": sharded, "slots": slots(step), "extra_mb": extra}
        rows.append(row)
    return rows
