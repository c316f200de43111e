"""Training steps by the ten thousand on the CPU: memory, time and warnings.

python -m benchmarks.reliability.soak --steps 20000 --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from benchmarks._measure.command import write_record
from benchmarks._measure.environment import describe_environment
from pixcontrast import (
    HardAnchorSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RegionContrastLoss,
)

CLASSES, PART = 5, 1000


def main(arguments: list[str] | None = None) -> int:
    """Train, and note every thousand steps what a step took and what the process holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    environment = describe_environment()
    bank = MemoryBank(CLASSES, 8, pixel_slots=40, region_slots=20)
    sampler = HardAnchorSampler(max_anchors=64, max_views=4)
    trunk, head = nn.Conv2d(3, 8, 3, padding=1), ProjectionHead(8, 8)
    pixels = PixelContrastLoss(bank=bank, anchor_sampler=sampler)
    regions = RegionContrastLoss(bank=bank, anchor_sampler=sampler, update_bank=False)
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)

    parts: list[dict[str, float]] = []
    seconds: list[float] = []
    warned: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(options.steps):
            images = torch.randn(2, 3, 12, 12)
            labels = torch.randint(-1, CLASSES, (2, 12, 12))
            start = time.perf_counter()
            emb = head(trunk(images))
            loss = pixels(emb, labels, labels.flip(0)) + regions(emb, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - start)
            if not bool(torch.isfinite(loss)):
                raise SystemExit(f"the loss of step {step} is {float(loss)}")
            if (step + 1) % PART == 0:
                gc.collect()
                parts.append(
                    {
                        "step": step + 1,
                        "median_seconds": statistics.median(seconds),
                        "resident_bytes": resident_bytes(),
                        "loss": float(loss.detach()),
                        "bank_occupancy": float(pixels.stats.bank_occupancy) if pixels.stats else 0,
                    }
                )
                seconds.clear()
                print(parts[-1], flush=True)
    warned.update(f"{w.category.__name__}: {w.message}" for w in caught)
    record = {"environment": environment, "steps": options.steps, "parts": parts,
              "warnings": dict(warned)}  # fmt: skip
    write_record(options.out, record)
    return 1 if any(count > 1 for count in warned.values()) else 0


def resident_bytes() -> int:
    """What the process holds in memory, as Linux tells it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    raise SystemExit(main())
