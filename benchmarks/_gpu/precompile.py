"""Compile what the next stages launch, in many processes with one cache on disk.

    python -m benchmarks._gpu.precompile --out FOLDER --budget 50 --processes 14

Each process makes some of the calls that the other stages time, once. Triton and torch.compile
leave the compiled code in their caches (TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR), where the next
stages find it. `precompile.json` has the seconds of each call, or why it failed.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._gpu.stages import stage_parser
from benchmarks._measure.command import matmul_precision, write_record
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.problem import HEADLINES, MODES, REHEARSED, Case, Problem
from benchmarks._ways.steps import CASES, StepCase
from benchmarks._ways.ways import COMPILED_WAYS, make_runs

NOT_FINISHED = "not finished"
FUSED_WAYS = ("info_nce", "unit length")
ENDING_SECONDS = 2.0
"""For processes that are stopped, and for the record."""


def main(arguments: list[str] | None = None) -> int:
    """Make every call, the most important ones first, in processes of their own."""
    options = _parser().parse_args(arguments)
    deadline = (STARTED if arguments is None else time.perf_counter()) + options.budget
    # Every process compiles for itself; with helpers of their own they would be too many.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    results: dict[str, Any] = dict.fromkeys(launch_calls(options.rehearse), NOT_FINISHED)
    context = multiprocessing.get_context("spawn")
    found, following = context.Queue(), context.Value("i", 0)
    workers = [
        context.Process(target=make_calls, args=(options.rehearse, following, found), daemon=True)
        for _ in range(options.processes)
    ]
    for worker in workers:
        worker.start()
    while NOT_FINISHED in results.values() and time.perf_counter() < deadline - ENDING_SECONDS:
        write_record(options.out / "precompile.json", {"calls": results})
        try:
            name, result = found.get(timeout=1.0)
            results[name] = result
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                break
    for worker in workers:
        worker.kill()
    write_record(options.out / "precompile.json", {"calls": results})
    print(f"{sum(isinstance(one, float) for one in results.values())} of {len(results)} calls made")
    return 0


def launch_calls(rehearse: bool) -> dict[str, Callable[[], object]]:
    """Return every call by its name, the most important ones first."""

    def of_ways(ways: tuple[str, ...], cases: tuple[Case, ...]) -> dict[str, Callable[[], object]]:
        return {
            f"{way}, {case}": partial(_run_way, way, case, rehearse)
            for case in cases
            for way in ways
        }

    if rehearse:  # The interpreter compiles nothing, so that few calls say enough.
        return of_ways(FUSED_WAYS, REHEARSED)
    # Kernels are not specialised for M: the second headline has those of the first.
    headlines = tuple(case for case in HEADLINES if case != HEADLINES[1])
    calls = of_ways(FUSED_WAYS, headlines) | of_ways(COMPILED_WAYS, HEADLINES[:1])
    for shape, case in itertools.product(STEP_SHAPES, CASES):
        calls[f"step, {shape}, {case}"] = partial(_run_step, shape, case)
    # torch.compile takes tens of seconds for one call: only for the cases that come first.
    return calls | of_ways(COMPILED_WAYS, HEADLINES[1:3])


def make_calls(rehearse: bool, following: Any, found: Any) -> None:
    """Make the calls that no other process has begun, and report the seconds of each."""
    calls = list(launch_calls(rehearse).items())
    while True:
        with following.get_lock():
            number = following.value
            following.value += 1
        if number >= len(calls):
            return
        name, call = calls[number]
        start = time.perf_counter()
        try:
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # All these processes share the memory of the card.
            found.put((name, time.perf_counter() - start))
        except Exception as error:  # What it means, the stage that makes this call will tell.
            found.put((name, f"{type(error).__name__}: {str(error)[:300]}"))


def _run_way(way: str, case: Case, rehearse: bool) -> None:
    device = torch.device("cpu" if rehearse else "cuda")
    with matmul_precision(MODES[case.mode].precision):
        make_runs(case, Problem.draw(case, device), (way,))[way]()


def _run_step(shape: str, case: str) -> None:
    StepCase(SHAPES[shape], case, torch.device("cuda"), as_on_gpu=True).way("step")()


def _parser() -> argparse.ArgumentParser:
    return stage_parser("precompile", __doc__)


if __name__ == "__main__":
    raise SystemExit(main())
