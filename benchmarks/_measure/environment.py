"""Describe the machine, the versions, the date and the commit of a measurement."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import pixcontrast


def look_at_machine() -> dict[str, object]:
    """Return `describe_environment`, and warn where the machine is busy."""
    load = (load_averages() or [0.0])[0]
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: the machine is busy (load {load:.2f}); ratios may be off", file=sys.stderr)
    return describe_environment()


def describe_environment() -> dict[str, object]:
    """Return versions, machine, date and commit. Call it before the run adds load.

    A copy without a git repository takes the commit from the variable PIXCONTRAST_COMMIT.
    """
    commit = os.environ.get("PIXCONTRAST_COMMIT")
    git = ("git", "-C", str(Path(__file__).parent))
    changes = _output_of(*git, "status", "--porcelain")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pixcontrast": pixcontrast.__version__,
        "git_commit": _output_of(*git, "rev-parse", "HEAD") or commit,
        "git_changed_files": None if changes is None else len(changes.splitlines()),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": load_averages(),
    }


def describe_device(device: torch.device) -> dict[str, object]:
    """Return the card, its driver, and the versions of CUDA and Triton; None for what is absent."""
    described: dict[str, object] = {"device": str(device), "card": None, "driver": None}
    described |= {"cuda": torch.version.cuda, "triton": None}
    with contextlib.suppress(metadata.PackageNotFoundError):
        described["triton"] = metadata.version("triton")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        fields = "driver_version,clocks.max.sm,clocks.max.memory,power.limit"
        lines = _output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader") or ""
        driver, _, clocks = lines.partition("\n")[0].partition(", ")
        described |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "driver": driver or None,
            "clocks": clocks or None,
        }
    return described


def load_averages() -> list[float] | None:
    """Return the load of the last 1, 5 and 15 minutes; None on Windows, which has none."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _output_of(*command: str) -> str | None:
    """Return what a command prints, or None where it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
