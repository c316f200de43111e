"""Long training on the CPU: memory, time and warnings over thousands of steps.

python -m benchmarks.reliability.soak --steps 20000 --out benchmarks/results/soak.json
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks._measure.arguments import command_parser
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
    """Train, and record the time of a step and the memory of the process every 1,000 steps."""
    parser = command_parser("reliability.soak", __doc__)
    parser.add_argument("--steps", type=int, default=20_000, metavar="N")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    environment, steps = describe_environment(), options.steps
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = list(train(steps))
    warned = Counter(f"{w.category.__name__}: {w.message}" for w in caught)
    record = {"environment": environment, "steps": steps, "parts": parts, "warnings": dict(warned)}
    write_record(options.out, record)
    return 1 if any(count > 1 for count in warned.values()) else 0


def train(steps: int) -> Iterator[dict[str, float]]:
    """Train a small network with both losses and a bank; yield a record of every 1,000 steps."""
    sampler = HardAnchorSampler(max_anchors=64, max_views=4)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), ProjectionHead(8, 8))
    bank = MemoryBank(CLASSES, 8, pixel_slots=40, region_slots=20)
    pixels = PixelContrastLoss(bank=bank, anchor_sampler=sampler)
    regions = RegionContrastLoss(bank=bank, anchor_sampler=sampler, update_bank=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    seconds: list[float] = []
    for number in range(1, steps + 1):
        start = time.perf_counter()
        images = torch.randn(2, 3, 12, 12)
        labels = torch.randint(-1, CLASSES, (2, 12, 12))
        emb = network(images)
        loss = pixels(emb, labels, labels.flip(0)) + regions(emb, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        assert pixels.stats is not None and pixels.stats.bank_occupancy is not None  # noqa: PT018
        seconds.append(time.perf_counter() - start)
        if not bool(torch.isfinite(loss)):
            raise SystemExit(f"the loss of step {number} is {float(loss)}")
        if number % PART == 0:
            gc.collect()
            # The resident memory of the process, as Linux reports it.
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            part = {
                "step": number,
                "median_seconds": statistics.median(seconds),
                "resident_bytes": pages * 4096,
                "loss": loss.item(),
                "bank_occupancy": float(pixels.stats.bank_occupancy),
            }
            seconds.clear()
            print(part, flush=True)
            yield part


if __name__ == "__main__":
    raise SystemExit(main())
