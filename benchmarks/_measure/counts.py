"""Count what a run does to its device: waits of the host, launches, and the time of each kernel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks._measure.memory import extra_memory
from benchmarks._measure.timers import Run, in_words, release

LISTED_KERNELS = 15


def profile_run(run: Run, device: torch.device) -> dict[str, Any]:
    """Return `extra_mb`, `waits`, `launches` and `kernels` of a run, or `status`.

    The last three are None on the CPU.
    """
    found: dict[str, Any] = {"waits": None, "launches": None, "kernels": None}
    try:
        run()  # Libraries and caches are not part of the run's memory.
        found["extra_mb"] = extra_memory(run, device)
        if device.type == "cuda":
            found["waits"] = count_waits(run, device)
            events = _device_events(run, device)
            found |= {"launches": len(events), "kernels": kernel_times(events)}
    except Exception as error:  # Other runs are still profiled.
        found["status"] = in_words(error)
        release(device)
    return found


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


def kernel_times(events: Sequence[Any]) -> list[dict[str, Any]]:
    """Return `name`, `launches` and `microseconds` of the kernels that take longest in all."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        kernel = found.setdefault(
            event.name, {"name": event.name[:120], "launches": 0, "microseconds": 0.0}
        )
        kernel["launches"] += 1
        kernel["microseconds"] += event.time_range.elapsed_us()
    slowest_first = sorted(found.values(), key=lambda kernel: -kernel["microseconds"])
    return slowest_first[:LISTED_KERNELS]


def _device_events(run: Run, device: torch.device) -> list[Any]:
    """Return the kernels, copies and fills that one run puts on the device."""
    run()
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize(device)
    return [event for event in profile.events() if event.device_type.name == "CUDA"]
