"""Describe the machine, the versions, the date and the commit of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import pixcontrast


def describe_environment(commit: str | None = None) -> dict[str, object]:
    """Return versions, machine, date and commit. Call it before the run adds load.

    Args:
        commit: the commit to record where the files are a copy without a git repository.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pixcontrast": pixcontrast.__version__,
        "git_commit": _git("rev-parse", "HEAD") or commit,
        "git_changed_files": _changed_files(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": _load_averages(),
    }


def describe_device(device: torch.device) -> dict[str, object]:
    """Return the card, its driver, and the versions of CUDA and Triton; None for what is absent."""
    described: dict[str, object] = {
        "device": str(device),
        "card": None,
        "driver": None,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["card"] = properties.name
        described["capability"] = f"{properties.major}.{properties.minor}"
        described["memory_gb"] = round(properties.total_memory / 1e9, 1)
        described["multiprocessors"] = properties.multi_processor_count
        described["driver"] = _smi("driver_version")
        described["clocks"] = _smi("clocks.max.sm,clocks.max.memory,power.limit")
    return described


def load_average() -> float:
    """Return the load of the last minute; 0 on a system without load averages."""
    averages = _load_averages()
    return averages[0] if averages else 0.0


def _load_averages() -> list[float] | None:
    # Windows has no load averages.
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _changed_files() -> int | None:
    """Return how many files differ from the commit, or None without a git repository."""
    changes = _git("status", "--porcelain")
    return None if changes is None else len(changes.splitlines())


def _git(*arguments: str) -> str | None:
    return _output_of(["git", "-C", str(Path(__file__).parent), *arguments])


def _smi(fields: str) -> str | None:
    """Return the fields of the first card as nvidia-smi reports them, or None."""
    lines = _output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    return lines.splitlines()[0] if lines else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output_of(command: list[str]) -> str | None:
    """Return what a command prints, or None where it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
