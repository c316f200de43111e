"""Ranks in processes of their own, which may end at any time; and a run that goes on after that."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from pool import process_context
from torch import Tensor, distributed
from torch.optim import AdamW
from training import Trainer, Trunk, shares, two_banks

SIZES = [4, 2]
TIME_LIMIT = 15.0
"""Seconds that a collective may take."""
DTYPE = torch.float32


class Run:
    """Training with a bank that every rank holds, one in shards, and random numbers of its own."""

    def __init__(self, group: Any, rank: int) -> None:
        self.rank = rank
        self.losses = two_banks(group, DTYPE, size=len(SIZES))
        self.trainer = Trainer(group, Trunk(DTYPE), self.losses, "outside")
        self.optimizer = AdamW(self.trainer.trunk.parameters(), 0.01)
        torch.manual_seed(rank)

    def parts(self) -> dict[str, Any]:
        return {
            "trunk": self.trainer.trunk,
            "losses": self.losses,
            "optimizer": self.optimizer,
        }

    def save(self, path: Path) -> None:
        """Each rank a file of its own, since it has a shard and random numbers of its own."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**state, "random": torch.get_rng_state()}, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])

    def steps(self, first: int, stop: int, die_before: str | None = None) -> list[Tensor]:
        """The losses of some steps; before what in the last of them this rank dies."""
        values = []
        for step, (images, labels, _) in enumerate(shares(SIZES, self.rank, DTYPE, first, stop)):
            last = first + step == stop - 1
            self.optimizer.zero_grad()
            emb = self.trainer.wrapped(images)
            if last and die_before == "loss":
                os._exit(1)
            seed = int(torch.randint(1 << 30, ()))
            loss = self.losses(emb, labels, seed)
            if last and die_before == "backward":
                os._exit(1)
            loss.backward()
            self.optimizer.step()
            values.append(loss.detach())
        return values

    def found(self, values: list[Tensor]) -> dict[str, Any]:
        return {
            "losses": values,
            "parameters": self.trainer.parameters(),
            "optimizer": self.optimizer.state_dict()["state"],
            "banks": self.losses.banks(),
        }


def uninterrupted(group: Any, rank: int) -> dict[str, Any]:
    """Six steps; the losses are those of the last three."""
    run = Run(group, rank)
    return run.found(run.steps(0, 6)[3:])


def until_one_dies(rank: int, folder: Path, die_before: str) -> dict[str, Any]:
    """Three steps and a checkpoint; in the fourth, rank 1 dies, and the other says what it sees."""
    run = Run(None, rank)
    run.steps(0, 3)
    run.save(folder / f"rank{rank}.pt")
    distributed.barrier()
    start = time.monotonic()
    try:
        run.steps(3, 4, die_before if rank == 1 else None)
    except RuntimeError as error:
        return {"told": str(error), "seconds": time.monotonic() - start}
    return {"told": "", "seconds": 0.0}


def resumed(rank: int, folder: Path) -> dict[str, Any]:
    """Steps four to six, after what the checkpoint holds."""
    run = Run(None, rank)
    run.load(folder / f"rank{rank}.pt")
    return run.found(run.steps(3, 6))


def start(job: Any, folder: Path, *arguments: Any) -> dict[int, Any]:
    """What a job returns on each rank that lives to the end of it, in new processes."""
    context = process_context()
    rendezvous = folder / f"rendezvous-{job.__name__}"
    processes, pipes = [], []
    for rank in range(len(SIZES)):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(job, rank, rendezvous, theirs, folder, *arguments), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    answers = dict(enumerate(map(_answer, pipes)))
    for process in processes:
        process.kill()
        process.join()
    return {rank: answer for rank, answer in answers.items() if answer is not None}


def _answer(pipe: Any) -> Any:
    """What a rank has to say; None where it has died."""
    if not pipe.poll(4 * TIME_LIMIT):
        raise TimeoutError("a rank has not answered")
    with suppress(EOFError):
        return torch.load(pipe.recv(), weights_only=True)
    return None


def _work(job: Any, rank: int, rendezvous: Path, pipe: Any, folder: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=len(SIZES),
        timeout=timedelta(seconds=TIME_LIMIT),
    )
    answer = folder / f"answer-{job.__name__}-{rank}.pt"
    torch.save(job(rank, folder, *arguments), answer)
    pipe.send(answer)
    os._exit(0)
