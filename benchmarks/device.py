"""Which accelerator a result was measured on, and what runs it."""

from __future__ import annotations

import subprocess
from importlib import metadata

import torch


def describe_device(device: torch.device) -> dict[str, object]:
    """The card, its driver, and the versions of CUDA and Triton; None where there is none."""
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _smi(fields: str) -> str | None:
    """What nvidia-smi says of the first card, or None where it says nothing."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.stdout.strip() else None
