"""Time runs in turn on a CPU or a CUDA device.

A run that fails has a status in words in place of figures, and the others are measured all the
same. Only a device that stops responding ends the measurement.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[], object]
Measured = dict[str, Any]
CPU = torch.device("cpu")
OUT_OF_MEMORY = "out of memory"
NO_TIME = "no time left"
SAMPLE_SECONDS = 0.004
"""On CUDA a sample is as many runs as take about this long: launches overlap as in training, and
the resolution of the events does not matter."""
MOST_RUNS = 20
SLOW_SECONDS = 0.25
"""On CUDA a run that takes longer is sampled twice, without an untimed run before each sample."""


class DeviceLostError(RuntimeError):
    """The device no longer responds, most often after an illegal address in a kernel."""

    measured: dict[str, Measured]
    """The results known by then, with a status for the run in which it happened."""


def now() -> float:
    """Return seconds from an arbitrary start."""
    return time.perf_counter()


def seconds_of(run: Run, device: torch.device, times: int = 1, untimed: int = 0) -> float:
    """Return the seconds of one run: the mean of `times` runs after `untimed` ones."""
    for _ in range(untimed):
        run()
    if device.type != "cuda":
        start = now()
        for _ in range(times):
            run()
        return (now() - start) / times
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times


@dataclass
class _Samples:
    """The samples of one run, or the words that stand in their place."""

    run: Run
    device: torch.device
    status: str | None = NO_TIME
    seconds: list[float] = field(default_factory=list)
    times: int = 1
    untimed: int = 0
    most: float = math.inf

    def warm_up(self) -> float:
        """Run once untimed: the first run compiles and allocates. On CUDA, size the samples."""
        if self.device.type != "cuda":
            self.run()
            return 0.0
        seconds = seconds_of(self.run, self.device, untimed=1)
        if seconds > SLOW_SECONDS:
            self.most = 2
        else:
            self.times = max(1, min(MOST_RUNS, round(SAMPLE_SECONDS / max(seconds, 1e-9))))
            # The memory and caches that the run before left behind are not this run's own.
            self.untimed = 1
        return seconds

    def sample(self) -> float:
        return seconds_of(self.run, self.device, self.times, self.untimed)

    def attempt(self, job: Callable[[], float], strict: bool) -> float | None:
        """Return what a job gives, or None and keep the reason as the status."""
        found = job() if strict else attempt(job, self.device)
        self.status = found if isinstance(found, str) else None
        return None if isinstance(found, str) else found

    def summary(self) -> Measured:
        if self.status is not None or not self.seconds:
            return {"status": self.status or NO_TIME}
        return {
            "seconds": statistics.median(self.seconds),
            "spread": spread(self.seconds) if len(self.seconds) > 1 else None,
            "samples": len(self.seconds),
        }


def measure(
    runs: Mapping[str, Run],
    repeats: int,
    device: torch.device = CPU,
    *,
    references: Sequence[str] = (),
    deadline: float = math.inf,
    strict: bool = False,
) -> dict[str, Measured]:
    """Time runs in turn, so that a slow spell of the machine affects all of them.

    Args:
        runs: what is timed, by name.
        repeats: samples of each run.
        device: the CPU, where a sample is one run by the host's clock, or a CUDA device, where it
            is several runs between two events.
        references: names of runs; every result has a ratio `to_NAME`, None where that run failed.
        deadline: as `now()` tells the time; after it no run is started, and no turn but the first
            two.
        strict: raise what a run raises. Ranks that must run in step need that.

    Returns:
        By name, `seconds` (median), `spread`, `samples` and the ratios, or `status`.
    """
    samples = {name: _Samples(run, device) for name, run in runs.items()}
    try:
        for one in samples.values():
            if now() > deadline:
                break
            one.attempt(one.warm_up, strict)
        for turn in range(repeats):
            if turn >= 2 and now() > deadline:
                break
            for one in samples.values():
                if one.status is None and turn < one.most:
                    found = one.attempt(one.sample, strict)
                    if found is not None:
                        one.seconds.append(found)
    except DeviceLostError as lost:
        one.status = f"the device was lost: {lost}"
        lost.measured = {name: one.summary() for name, one in samples.items()}
        raise
    measured = {name: one.summary() for name, one in samples.items()}
    add_ratios(measured, references)
    return measured


def keep_figures(measured: dict[str, Measured], found: Mapping[str, Measured]) -> None:
    """Put new results into `measured`. A status does not replace figures."""
    for name, one in found.items():
        if "seconds" in one or "seconds" not in measured.get(name, {}):
            measured[name] = dict(one)


def add_ratios(measured: Mapping[str, Measured], references: Sequence[str]) -> None:
    """Add to each result with `seconds` its ratio `to_NAME` for each reference."""
    for reference in references:
        seconds = measured.get(reference, {}).get("seconds")
        for one in measured.values():
            if "seconds" in one:
                one[f"to_{reference}"] = one["seconds"] / seconds if seconds else None


def attempt(job: Callable[[], float], device: torch.device) -> float | str:
    """Return what a job gives, or in words why it fails."""
    try:
        return job()
    except torch.cuda.OutOfMemoryError:
        words = OUT_OF_MEMORY
    except Exception as error:  # Whatever fails in one run, the others are still measured.
        words = in_words(error)
    # Not in the handler: there the error still holds the frames and with them their tensors.
    release(device)
    return words


def release(device: torch.device) -> None:
    """Free memory that is not in use, and raise `DeviceLostError` if the device is lost."""
    gc.collect()
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
        except Exception as error:
            raise DeviceLostError(in_words(error)) from error


def in_words(error: BaseException) -> str:
    """Describe an error in one line; all forms of a memory shortage become one."""
    lines = str(error).strip().splitlines() or [""]
    if "out of memory" in str(error).lower() or "ALLOC_FAILED" in str(error):
        return OUT_OF_MEMORY
    return f"failed: {type(error).__name__}: {lines[0][:200]}"


def spread(seconds: Sequence[float]) -> float:
    """Return (third quartile − first quartile) / median: a measure of the machine's noise."""
    first, middle, third = statistics.quantiles(seconds, n=4)
    return (third - first) / middle
