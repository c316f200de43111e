"""Timing of ways that may fail: device events, ways in turn, and a word where there is no figure.

A figure of one way is never lost to the failure of another. Only a device that no longer answers
ends a run, for then nothing that follows would mean anything.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.timing import measured_peak, spread

Run = Callable[[], object]
Measured = dict[str, object]
OUT_OF_MEMORY = "out of memory"
SAMPLE_SECONDS = 0.004
"""A sample is as many runs as take about so long, at least one: launches overlap as they do in
training, and the clock's own step does not matter."""
SLOW_SECONDS = 0.25
"""A run this long is timed twice and no more, without an untimed run before each."""


class DeviceLostError(RuntimeError):
    """The device answers no more: an illegal address in a kernel, most often."""

    measured: dict[str, Measured]
    """What was known of the runs by then, and of which of them it happened in."""


def now() -> float:
    """Seconds, of which only differences mean anything."""
    return time.perf_counter()


def seconds_of(run: Run, device: torch.device, times: int = 1, untimed: int = 0) -> float:
    """Seconds of one run, as a mean of `times` one after the other, `untimed` ones before them."""
    if device.type != "cuda":
        for _ in range(untimed):
            run()
        start = now()
        for _ in range(times):
            run()
        return (now() - start) / times
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    for _ in range(untimed):
        run()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times


def attempt(job: Callable[[], float], device: torch.device) -> float | str:
    """What a job gives, or in words why it gives nothing."""
    try:
        return job()
    except torch.cuda.OutOfMemoryError:
        words = OUT_OF_MEMORY
    except Exception as error:  # of any way: the others are still to be measured
        words = in_words(error)
    # Outside the handler: until there the error holds the frames, and with them their tensors.
    release(device)
    return words


def release(device: torch.device) -> None:
    """Give back memory that nothing holds, and see whether the device still answers."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLostError(in_words(error)) from error


def measure(
    runs: Mapping[str, Run], repeats: int, device: torch.device, deadline: float = float("inf")
) -> dict[str, Measured]:
    """Of each run `seconds`, `spread` and `samples`, or `status`; all of them in turn.

    After `deadline` no way is begun, and no turn but the first two.
    """
    status: dict[str, str] = dict.fromkeys(runs, "no time left")
    samples: dict[str, list[float]] = {}
    jobs: dict[str, Job] = {}
    name = ""
    try:
        for name, run in runs.items():
            if now() > deadline:
                break
            # The first run compiles and allocates; the second says how long one takes.
            found = attempt(_sample(run, device, times=1, untimed=1), device)
            if isinstance(found, str):
                status[name] = found
            else:
                jobs[name] = _job(run, found, device)
                samples[name] = []
        for turn in range(repeats):
            if turn >= 2 and now() > deadline:
                break
            for name, job in list(jobs.items()):
                if job.is_slow and turn >= 2:
                    continue
                found = attempt(job.sample, device)
                if isinstance(found, str):
                    status[name] = found
                    del jobs[name], samples[name]
                else:
                    samples[name].append(found)
    except DeviceLostError as lost:
        samples.pop(name, None)
        status[name] = f"the device was lost: {lost}"
        lost.measured = _summary(status, samples)
        raise
    return _summary(status, samples)


@dataclass(frozen=True)
class Job:
    """One sample of a run, and whether it takes long."""

    sample: Callable[[], float]
    is_slow: bool


def _job(run: Run, seconds: float, device: torch.device) -> Job:
    if seconds > SLOW_SECONDS:
        return Job(_sample(run, device, times=1, untimed=0), is_slow=True)
    times = max(1, min(20, round(SAMPLE_SECONDS / max(seconds, 1e-9))))
    # Memory and clock as the way before left them are not this way's own: one untimed.
    return Job(_sample(run, device, times, untimed=1), is_slow=False)


def _sample(run: Run, device: torch.device, times: int, untimed: int) -> Callable[[], float]:
    return lambda: seconds_of(run, device, times, untimed)


def _summary(status: Mapping[str, str], samples: Mapping[str, list[float]]) -> dict[str, Measured]:
    summary: dict[str, Measured] = {}
    for name, words in status.items():
        taken = samples.get(name)
        if taken:
            summary[name] = {
                "seconds": statistics.median(taken),
                "spread": spread(taken) if len(taken) > 1 else None,
                "samples": len(taken),
            }
        else:
            summary[name] = {"status": words}
    return summary


def extra_memory(run: Run, device: torch.device) -> float | None:
    """MB that one run needs beyond what is there, after runs that left nothing new behind."""
    found = attempt(lambda: measured_peak(run, device), device)
    return None if isinstance(found, str) else found


def in_words(error: BaseException) -> str:
    """One line; the libraries' ways to say that memory is short are made one."""
    lines = str(error).strip().splitlines() or [""]
    if "out of memory" in str(error).lower() or "ALLOC_FAILED" in str(error):
        return OUT_OF_MEMORY
    return f"failed: {type(error).__name__}: {lines[0][:200]}"
