"""Processes on gloo that make the same random call together, and the judge of their answers."""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections import Counter
from typing import Any

from torch import multiprocessing

from benchmarks._ranks.pool import join_ranks
from benchmarks.reliability.memory import limited_memory
from benchmarks.reliability.oracle import judge_error, time_limit
from benchmarks.reliability.rank_calls import make_rank_call, perform
from benchmarks.reliability.rank_truth import wrong_across

COLLECTIVE = 20
"""Seconds that ranks wait for each other: nobody should, and longer is a hang."""
ANSWER = 60
"""Seconds after which ranks that do not even raise are ended."""
BROKEN = re.compile(r"[Tt]imed out|[Tt]imeout|Connection|closed by peer|reset by peer")


class Ranks:
    """Processes that stay up for many calls."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, size, self._folder.name, theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def answers(self, number: int) -> list[dict[str, Any]]:
        """What every rank made of the call of a number; raises TimeoutError where one is silent."""
        for pipe in self._pipes:
            pipe.send(number)
        deadline = time.monotonic() + ANSWER
        found = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"rank {rank} does not answer")
            found.append(pipe.recv())
        return found

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            process.kill()
        self._folder.cleanup()


def run_ranks(numbers: range, size: int) -> dict[str, Any]:
    """How many calls ended in which way, and what was wrong with which."""
    ended: Counter[str] = Counter()
    defects: dict[str, str] = {}
    ranks = Ranks(size)
    try:
        for number in numbers:
            how, wrong, broken = outcome(ranks, number)
            ended[how] += 1
            ended["calls"] += 1
            if wrong is not None:
                defects[str(number)] = wrong
            if broken:
                ranks.close()
                ranks = Ranks(size)
    finally:
        ranks.close()
    return {"ended": dict(ended), "defects": defects}


def outcome(ranks: Ranks, number: int) -> tuple[str, str | None, bool]:
    """How a call ended, what is wrong, and whether its ranks are of no use any longer."""
    calls = [make_rank_call(number, rank) for rank in range(ranks.size)]
    try:
        answers = ranks.answers(number)
    except (TimeoutError, EOFError, ConnectionError) as error:
        return "hang", f"{calls[0].name}: a hang: {error}", True
    try:
        wrong = wrong_across(calls, answers)
    except Exception as error:  # a judge that stumbles has not judged
        wrong = f"not judged: {type(error).__name__}: {error}"
    broken = any(BROKEN.search(answer["wrong"] or "") for answer in answers)
    broken |= len({answer["ended"] for answer in answers}) > 1
    return answers[0]["ended"], None if wrong is None else f"{calls[0].name}: {wrong}", broken


def _serve(rank: int, size: int, folder: str, pipe: Any) -> None:
    join_ranks(rank, size, folder, COLLECTIVE)
    with limited_memory():
        while True:
            try:
                number = pipe.recv()
            except EOFError:
                break
            pipe.send(_answer(number, rank, None))


def answers_of(group: Any, rank: int, numbers: range) -> list[dict[str, Any]]:
    """What this rank of a group makes of some numbers."""
    with limited_memory():
        return [_answer(number, rank, group) for number in numbers]


def _answer(number: int, rank: int, group: Any) -> dict[str, Any]:
    call = make_rank_call(number, rank)
    try:
        with time_limit(ANSWER // 2), warnings.catch_warnings():
            warnings.simplefilter("error")
            return {"ended": "value", "wrong": None, **perform(call, group)}
    except Exception as error:
        ended, wrong = judge_error(error)
        return {"ended": ended, "wrong": wrong}
