"""Peak memory of a run: in this process, or in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure.timers import CPU, Run


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


def peak_memory(make_runs: Callable[..., tuple[Run, Run]], *arguments: Any) -> float | None:
    """Return `measured_peak` of a run on the CPU, in a new process with as many threads.

    Args:
        make_runs: returns a small run and the run itself. The small one goes first: threads,
            libraries and compiled code are not part of the memory.
        arguments: of `make_runs`.

    Returns:
        The MB, or None where the process runs out of memory or the system has no such figure.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_peak_of, torch.get_num_threads(), make_runs, arguments).result()
        except (BrokenProcessPool, MemoryError, OSError, RuntimeError):
            return None


def _peak_of(threads: int, make_runs: Callable[..., tuple[Run, Run]], arguments: Any) -> float:
    torch.set_num_threads(threads)
    small, run = make_runs(*arguments)
    small()
    return measured_peak(run)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
