"""What a run does to its device: peak memory, waits of the host, launches; and CUDA graphs."""

from __future__ import annotations

import ctypes
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure.timers import CPU, Run

WARM_RUNS = 3
"""Runs before a capture: kernels are compiled and libraries allocate their workspaces."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LISTED_KERNELS = 15


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

    `make_runs` returns a small run, which goes first, and the run itself: threads, libraries and
    compiled code are not part of the memory. None where the process runs out of memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_peak_of, torch.get_num_threads(), make_runs, arguments).result()
        except (BrokenProcessPool, MemoryError, OSError, RuntimeError):
            return None


def _peak_of(threads: int, make_runs: Callable[..., tuple[Run, Run]], arguments: Any) -> float:
    torch.set_num_threads(threads)
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        # Return every freed tensor above 256 KB to the system. Otherwise the peak includes free
        # blocks of the heap, and varies by 5% from process to process.
        library.mallopt(M_MMAP_THRESHOLD, 1 << 18)
    small, run = make_runs(*arguments)
    small()
    return measured_peak(run)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def replayed(run: Run, device: torch.device) -> Run:
    """Return a function that captures the run when it is first called, and replays it then on.

    It returns the static results of the capture. The run may include a backward by
    `torch.autograd.grad`: its gradients are then static too. A random number of the default
    generator is drawn anew by each replay.
    """
    graph = torch.cuda.CUDAGraph() if device.type == "cuda" else None
    results: list[object] = []

    def replay() -> object:
        if graph is None:
            raise RuntimeError("a CUDA graph needs a CUDA device")
        if not results:
            results.append(_capture(run, device, graph))
        graph.replay()
        return results[0]

    return replay


def _capture(run: Run, device: torch.device, graph: torch.cuda.CUDAGraph) -> object:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    try:
        with torch.cuda.graph(graph):
            return run()
    finally:
        # A capture that fails may leave its own stream as the current one.
        torch.cuda.set_stream(current)


def profile_run(run: Run, device: torch.device) -> dict[str, Any]:
    """Return `extra_mb` of a run, and on CUDA its `waits`, `launches` and slowest `kernels`."""
    run()  # Libraries and caches are not part of the run's memory.
    found: dict[str, Any] = {"extra_mb": measured_peak(run, device)}
    if device.type == "cuda":
        found |= {"waits": count_waits(run), **count_launches(run, device)}
    return found


def count_waits(run: Run) -> int:
    """Return how often the host waits for the device, by PyTorch's synchronization warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Setting the mode warns once as well, of "all synchronizing operations".
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def count_launches(run: Run, device: torch.device) -> dict[str, Any]:
    """Return the number of kernels, copies and fills of one run, and the slowest of them."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize(device)
    kernels = [
        {"name": one.key[:120], "launches": one.count, "microseconds": one.self_device_time_total}
        for one in profile.key_averages()
        if one.device_type.name == "CUDA"
    ]
    kernels.sort(key=lambda kernel: -kernel["microseconds"])
    launches = sum(kernel["launches"] for kernel in kernels)
    return {"launches": launches, "kernels": kernels[:LISTED_KERNELS]}
