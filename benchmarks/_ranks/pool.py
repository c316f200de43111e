"""Ranks on gloo for as long as one job takes: a function that all of them call."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

TIME_LIMIT = 600.0
"""Seconds that a job, or a collective in it, may take."""

Job = Callable[..., Any]


def on_ranks(size: int, job: Job, *arguments: Any) -> list[Any]:
    """What `job(rank, *arguments)` gives on each rank, as JSON knows it; one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        given = (size, folder, job, arguments)
        context: Any = multiprocessing.spawn(_serve, given, nprocs=size, join=False)  # type: ignore[no-untyped-call, attr-defined]
        deadline = time.monotonic() + TIME_LIMIT
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{job.__name__}: {size} ranks took over {TIME_LIMIT:.0f} s")
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(size)]


def join_ranks(rank: int, size: int, folder: str, seconds: float) -> None:
    """Meet the others in a folder; `seconds` is what a collective may take. One thread each."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=seconds),
    )


def _serve(rank: int, size: int, folder: str, job: Job, arguments: tuple[Any, ...]) -> None:
    join_ranks(rank, size, folder, TIME_LIMIT)
    torch.manual_seed(rank)
    answer = json.dumps(job(rank, *arguments))
    (Path(folder) / str(rank)).write_text(answer)
    distributed.barrier()
    distributed.destroy_process_group()
