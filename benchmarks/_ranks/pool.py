"""Ranks on gloo: processes that run functions together until they are closed."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

TIME_LIMIT = 600.0
"""Default time limit of a function, or of a collective in it, in seconds."""


class Ranks:
    """Processes of one thread each, in one process group.

    Args:
        size: number of ranks.
        collective: time limit of a collective in seconds.
    """

    def __init__(self, size: int, collective: float = TIME_LIMIT) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, self._folder.name, collective, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(
        self, function: Callable[..., Any], *arguments: Any, seconds: float = TIME_LIMIT
    ) -> list[Any]:
        """Return `function(group, rank, *arguments)` of each rank; `group` is None, the world.

        Raises:
            TimeoutError: if a rank takes longer than `seconds`.
            RuntimeError: if the function raises, with the traceback.
        """
        for pipe in self._pipes:
            pipe.send((function, arguments))
        deadline = time.monotonic() + seconds
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"rank {rank} does not answer")
            answers.append(pipe.recv())
        for rank, (returned, answer) in enumerate(answers):
            if not returned:
                raise RuntimeError(f"rank {rank}:\n{answer}")
        return [answer for _, answer in answers]

    def close(self) -> None:
        """Stop the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            process.kill()
        self._folder.cleanup()


def _serve(rank: int, size: int, folder: str, collective: float, pipe: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'rendezvous'}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=collective),
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        torch.manual_seed(rank)
        try:
            answer = (True, function(None, rank, *arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
    os._exit(0)  # a regular exit of the interpreter takes as long as many calls
