"""CUDA graphs, and what a run does to its device: waits of the host, launches, kernel times."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from benchmarks._measure.memory import measured_peak
from benchmarks._measure.timers import Run, attempt

WARM_RUNS = 3
"""Runs before a capture: kernels are compiled and libraries allocate their workspaces."""
LISTED_KERNELS = 15


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
    """Return `extra_mb`, `waits`, `launches` and `kernels` of a run, or `status`.

    The last three are None on the CPU. `kernels` lists those that take longest in all.
    """
    found: dict[str, Any] = {"waits": None, "launches": None, "kernels": None}

    def job() -> float:
        run()  # Libraries and caches are not part of the run's memory.
        extra = measured_peak(run, device)
        if device.type == "cuda":
            found["waits"] = count_waits(run, device)
            found.update(_launches(run, device))
        return extra

    extra = attempt(job, device)
    return found | ({"status": extra} if isinstance(extra, str) else {"extra_mb": extra})


def count_waits(run: Run, device: torch.device) -> int:
    """Return how often the host waits for the device, by PyTorch's synchronization warnings."""
    run()
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def _launches(run: Run, device: torch.device) -> dict[str, Any]:
    """Return the number of kernels, copies and fills of one run, and the slowest of them."""
    run()
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
