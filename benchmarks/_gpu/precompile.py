"""Compile what the next stages launch, in many processes with one cache on disk.

    python -m benchmarks._gpu.precompile --out FOLDER --budget 50 --processes 14

Each process makes some of the calls that the other stages time or check, once. Triton and
torch.compile leave the compiled code in their caches (TRITON_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR),
where the next stages find it. `precompile.json` tells the seconds of each call, or why it failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import STARTED
from benchmarks._gpu.process import run_limited
from benchmarks._gpu.records import read_record, write_record

RECORD = "precompile.json"
NOT_FINISHED = "not finished"
ENDING_SECONDS = 2.0
"""For a process that was stopped, and for the record of all."""


def main(arguments: list[str] | None = None) -> int:
    """Make every call, the most important ones first, in processes of their own."""
    options = _parser().parse_args(arguments)
    started = STARTED if arguments is None else time.perf_counter()
    if options.part is not None:
        return _run_part(options, started + options.budget)
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = options.budget - (time.perf_counter() - started) - ENDING_SECONDS
    parts = range(options.processes)
    with ThreadPoolExecutor(options.processes) as pool:
        list(pool.map(lambda part: _start_part(options, part, seconds), parts))
    calls: dict[str, Any] = {}
    for part in parts:
        calls |= read_record(_part_path(options.out, part)) or {}
    write_record(options.out / RECORD, {"rehearsal": options.rehearse, "calls": calls})
    print(f"{sum(isinstance(one, float) for one in calls.values())} of {len(calls)} calls made")
    return 0


def _start_part(options: argparse.Namespace, part: int, seconds: float) -> None:
    command = [sys.executable, "-m", "benchmarks._gpu.precompile", "--out", str(options.out)]
    command += ["--budget", f"{seconds:.1f}", "--processes", str(options.processes)]
    command += ["--part", str(part), *(["--rehearse"] if options.rehearse else [])]
    log = options.out / f"part-{part}.log"
    # Every process compiles for itself; with helpers of their own they would be too many.
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    run_limited(command, seconds=seconds, output=log, errors=log, environment=alone)


def _run_part(options: argparse.Namespace, deadline: float) -> int:
    """Make every so many-th call, in this process, and write down each."""
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # Before the kernels are imported.
    # The process that keeps the time has no need of PyTorch, which takes seconds to import.
    import torch

    from benchmarks._gpu.launch_calls import launch_calls

    calls = list(launch_calls(options.rehearse).items())[options.part :: options.processes]
    results: dict[str, Any] = dict.fromkeys((name for name, _ in calls), NOT_FINISHED)
    for name, call in calls:
        write_record(_part_path(options.out, options.part), results)
        start = time.perf_counter()
        if start > deadline:
            break
        try:
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.empty_cache()  # All these processes share the memory of the card.
            results[name] = time.perf_counter() - start
        except Exception as error:  # What it means, the stage that makes this call will tell.
            results[name] = f"{type(error).__name__}: {str(error)[:300]}"
    write_record(_part_path(options.out, options.part), results)
    return 0


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks._gpu.precompile")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--budget", type=float, default=50.0, metavar="SECONDS")
    add("--processes", type=int, default=1, metavar="N")
    add("--rehearse", action="store_true", help="small, in Triton's interpreter")
    add("--part", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
