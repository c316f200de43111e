"""Peak memory of a run: in this process, or in a process of its own."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks._measure.timers import CPU, Run, attempt


def measured_peak(run: Run, device: torch.device = CPU) -> float:
    """Return the MB that a run needs beyond what is allocated before it.

    On CUDA, what the allocator hands out. On the CPU, resident memory (Linux only): its high-water
    mark is reset first by writing to /proc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - allocated) / (1 << 20)
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        # Memory that was freed but kept by the heap would be used again without being counted.
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resident = _status("VmRSS")
    run()
    return (_status("VmHWM") - resident) / 1024


def extra_memory(run: Run, device: torch.device) -> float | None:
    """Return `measured_peak`, or None where the run fails."""
    found = attempt(lambda: measured_peak(run, device), device)
    return None if isinstance(found, str) else found


def peak_memory(module: str, *arguments: str) -> float | None:
    """Return the number that `python -m module *arguments` prints in a process of its own.

    None where the process runs out of memory or the system has no such figure.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    return float(json.loads(result.stdout)) if result.returncode == 0 else None


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
