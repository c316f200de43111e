"""Timing on a shared machine: alternating runs, medians, ratios; and peak memory, apart."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

CPU = torch.device("cpu")


def alternate(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device = CPU
) -> dict[str, list[float]]:
    """Seconds of each run, all of them in turn, so that a slow spell of the machine hits all."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = now(device)
            run()
            seconds[name].append(now(device) - start)
    return seconds


def now(device: torch.device) -> float:
    """Seconds on a clock that is read once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def summarise(
    seconds: Mapping[str, list[float]], references: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Of runs that alternated: median, spread, and ratios `to_` the references that ran."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    summary: dict[str, dict[str, float | None]] = {}
    for name, times in seconds.items():
        summary[name] = {"seconds": medians[name], "spread": spread(times)}
        for reference in references:
            there = reference in medians
            summary[name][f"to_{reference}"] = medians[name] / medians[reference] if there else None
    return summary


def spread(seconds: list[float]) -> float:
    """(third quartile − first quartile) / median: how quiet the machine was."""
    first, middle, third = statistics.quantiles(seconds, n=4)
    return (third - first) / middle


def load_average() -> float:
    """Of the last minute; 0 where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def peak_memory(module: str, *arguments: str) -> float | None:
    """Extra peak memory in MB, as `python -m module *arguments` prints it in a process of its own.

    None where the process ran out of memory, or the system does not tell.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    return float(json.loads(result.stdout)) if result.returncode == 0 else None


def measured_peak(run: Callable[[], object], device: torch.device = CPU) -> float:
    """MB that one run needs beyond what is there before it. On a CPU, of Linux alone.

    The high-water mark is reset first: on a CPU that of resident memory, by writing to /proc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - allocated) / (1 << 20)
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        # Memory that was freed but kept would be taken again without being seen.
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS")
    run()
    return (_status("VmHWM") - resident) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
