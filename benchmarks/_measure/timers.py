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
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
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


class _Plan(NamedTuple):
    """How a run is sampled: runs in a sample, untimed runs before it, and the most samples."""

    times: int = 1
    untimed: int = 0
    most: float = math.inf


def _warm_up(run: Run, device: torch.device) -> _Plan:
    """Run once untimed: the first run compiles and allocates. On CUDA, size the samples."""
    if device.type != "cuda":
        run()
        return _Plan()
    seconds = seconds_of(run, device, untimed=1)
    if seconds > SLOW_SECONDS:
        return _Plan(most=2)
    # The memory and caches that the run before left behind are not this run's own.
    return _Plan(max(1, min(MOST_RUNS, round(SAMPLE_SECONDS / max(seconds, 1e-9)))), untimed=1)


def measure(
    runs: Mapping[str, Run],
    repeats: int,
    device: torch.device = CPU,
    *,
    into: dict[str, Measured] | None = None,
    references: Sequence[str] = (),
    deadline: float = math.inf,
    strict: bool = False,
) -> dict[str, Measured]:
    """Time runs in turn, so that a slow spell of the machine affects all of them.

    Args:
        runs: what is timed, by name.
        repeats: samples of each run. On the CPU a sample is one run by the host's clock.
        device: where they run.
        into: former results, to which these are added also where the device is lost. A status does
            not replace figures.
        references: names of runs; the results of these turns have ratios `to_NAME`, None where that
            run failed.
        deadline: time of `now()` after which nothing is started but the first two turns.
        strict: raise what a run raises.

    Returns:
        By name, `seconds` (median), `spread`, `samples` and the ratios, or `status`.
    """
    measured: dict[str, Measured] = {} if into is None else into
    plans: dict[str, _Plan] = {}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    status = dict.fromkeys(runs, NO_TIME)
    try:
        for turn in range(-1, repeats):
            for name, run in runs.items():
                if now() > deadline and not 0 <= turn < 2:
                    break
                if turn >= plans.get(name, _Plan(most=0)).most:
                    continue
                job: Callable[[], Any] = partial(_warm_up, run, device)
                if turn >= 0:
                    job = partial(seconds_of, run, device, plans[name].times, plans[name].untimed)
                found = job() if strict else attempt(job, device)
                if isinstance(found, str):
                    status[name] = found
                    plans.pop(name, None)
                elif isinstance(found, _Plan):
                    plans[name] = found
                else:
                    samples[name].append(found)
    except DeviceLostError as lost:
        status[name] = f"the device was lost: {lost}"
        plans.pop(name, None)
        raise
    finally:
        for name, seconds in samples.items():
            if seconds and name in plans:
                measured[name] = {
                    "seconds": statistics.median(seconds),
                    "spread": spread(seconds) if len(seconds) > 1 else None,
                    "samples": len(seconds),
                }
            elif "seconds" not in measured.get(name, {}):
                measured[name] = {"status": status[name]}
        for reference in references:
            whole = measured.get(reference, {}).get("seconds")
            for one in (measured[name] for name in runs):
                if "seconds" in one:
                    one[f"to_{reference}"] = one["seconds"] / whole if whole else None
    return measured


def attempt(job: Callable[[], T], device: torch.device) -> T | str:
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
