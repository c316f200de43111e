"""Timing on a shared machine: alternating runs, medians, ratios; and peak memory, apart."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def alternate(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, all of them in turn, so that a slow spell of the machine hits all."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> float:
    """Of two runs that alternated: the ratio of their medians."""
    return statistics.median(seconds) / statistics.median(reference)


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


def measured_peak(run: Callable[[], object]) -> float:
    """MB that one run needs beyond what is there before it. Linux alone.

    The high-water mark of resident memory is reset first, by writing to /proc.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
