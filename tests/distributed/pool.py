"""Processes that stay up for a whole run of tests: starting one takes as long as many a test."""

import importlib
import os
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

TIME_LIMIT = 60.0
"""Seconds that a collective, or a whole job, may take."""


class Pool:
    """Ranks that run jobs: functions of a module, called with their process group first.

    A job of fewer ranks than there are runs on the first of them, in a group of their own; a job
    of all is given None, the world.
    """

    def __init__(self, size: int, folder: Path) -> None:
        context = process_context()
        self._pipes = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, str(folder / "rendezvous"), theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: str, size: int, *arguments: Any, **options: Any) -> list[Any]:
        """What `module.function` returns on each of `size` ranks, in rank order."""
        for pipe in self._pipes[:size]:
            pipe.send((job, size, arguments, options))
        deadline = time.monotonic() + TIME_LIMIT
        answers = []
        for rank, pipe in enumerate(self._pipes[:size]):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{job}: rank {rank} of {size} has not answered")
            answers.append(pipe.recv())
        failures = [
            f"rank {rank}:\n{text}" for rank, (fine, text) in enumerate(answers) if not fine
        ]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            process.kill()


def process_context() -> Any:
    """A context whose processes are forks of one that has imported PyTorch, once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pixcontrast", "torch.distributed", "torch.nn.parallel"])
    return context


def new_group(ranks: list[int]) -> Any:
    """A group of some ranks, under the time limit; every rank calls it."""
    return distributed.new_group(ranks, timeout=timedelta(seconds=TIME_LIMIT))


def _serve(rank: int, size: int, rendezvous: str, pipe: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    limit = timedelta(seconds=TIME_LIMIT)
    distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=limit
    )
    groups: dict[int, Any] = {size: None}
    for smaller in range(1, size):
        groups[smaller] = new_group(list(range(smaller)))
    while True:
        try:
            job, num_ranks, arguments, options = pipe.recv()
        except EOFError:
            break
        module, function = job.rsplit(".", 1)
        torch.manual_seed(rank)
        try:
            run = getattr(importlib.import_module(module), function)
            answer = (True, run(groups[num_ranks], rank, *arguments, **options))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
    distributed.destroy_process_group()
    os._exit(0)  # nobody waits for four interpreters to take themselves apart
