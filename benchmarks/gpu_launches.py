"""How often a step makes the host wait, how much it launches, and the same from a CUDA graph."""

from __future__ import annotations

import warnings

import torch

from benchmarks.cuda_timing import Run

WARM_RUNS = 3
"""Before a graph is captured: kernels are compiled and libraries make their workspaces."""


def captured(run: Run, device: torch.device) -> Run:
    """The run as a CUDA graph; its random numbers are drawn afresh by each replay."""
    if device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a CUDA device")
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> object:
        graph.replay()
        return results

    return replay


def count_waits(run: Run, device: torch.device) -> int | None:
    """How often the host waits for the device, as PyTorch's alarm for it says."""
    if device.type != "cuda":
        return None
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


def count_launches(run: Run, device: torch.device) -> int | None:
    """Kernels, copies and fills that one run puts on the device."""
    if device.type != "cuda":
        return None
    run()
    torch.cuda.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize(device)
    events = [event.device_type.name for event in profile.events()]
    return events.count("CUDA")
