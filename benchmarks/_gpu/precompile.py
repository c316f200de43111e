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
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks import STARTED
from benchmarks._gpu.stages import stage_parser
from benchmarks._measure.command import matmul_precision, write_record
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.problem import HEADLINES, MODES, REHEARSED, Case, Problem
from benchmarks._ways.steps import CASES, StepCase
from benchmarks._ways.ways import COMPILED_WAYS, make_runs

Calls = dict[str, Callable[[], object]]
NOT_FINISHED = "not finished"
FUSED_WAYS = ("info_nce", "unit length")
ENDING_SECONDS = 2.0
"""For processes that are stopped, and for the record."""


def main(arguments: list[str] | None = None) -> int:
    """Make every call, the most important ones first, in processes of their own."""
    options = _parser().parse_args(arguments)
    began = STARTED if arguments is None else time.perf_counter()
    # Every process compiles for itself; with helpers of their own they would be too many.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"
    results: dict[str, object] = dict.fromkeys(launch_calls(options.rehearse), NOT_FINISHED)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = pool.imap_unordered(partial(make_call, options.rehearse), list(results))
        for _ in results:
            write_record(options.out / "precompile.json", {"calls": results})
            left = began + options.budget - ENDING_SECONDS - time.perf_counter()
            try:
                name, result = found.next(timeout=max(0.0, left))
            except multiprocessing.TimeoutError:
                break
            results[name] = result
    write_record(options.out / "precompile.json", {"calls": results})
    print(f"{sum(isinstance(one, float) for one in results.values())} of {len(results)} calls made")
    return 0


def launch_calls(rehearse: bool) -> Calls:
    """Return every call by its name, the most important ones first."""

    def of_ways(ways: Sequence[str], cases: Sequence[Case]) -> Calls:
        return {
            f"{way}, {case}": partial(_run_way, way, case, rehearse)
            for case in cases
            for way in ways
        }

    if rehearse:  # The interpreter compiles nothing, so that few calls say enough.
        return of_ways(FUSED_WAYS, REHEARSED)
    # Kernels are not specialised for M: the second headline has those of the first.
    calls = of_ways(FUSED_WAYS, [case for case in HEADLINES if case != HEADLINES[1]])
    calls |= of_ways(COMPILED_WAYS, HEADLINES[:1])
    for shape, case in itertools.product(STEP_SHAPES, CASES):
        calls[f"step, {shape}, {case}"] = partial(_run_step, shape, case)
    # torch.compile takes tens of seconds for one call: only for the cases that come first.
    return calls | of_ways(COMPILED_WAYS, HEADLINES[1:3])


def make_call(rehearse: bool, name: str) -> tuple[str, float | str]:
    """Make a call, and return its name and its seconds, or why it fails."""
    start = time.perf_counter()
    try:
        launch_calls(rehearse)[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # All these processes share the memory of the card.
    except Exception as error:  # What it means, the stage that makes this call will tell.
        return name, f"{type(error).__name__}: {str(error)[:300]}"
    return name, time.perf_counter() - start


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
