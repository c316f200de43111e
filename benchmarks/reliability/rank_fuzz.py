"""Random calls of several ranks together, and the judgement of their answers."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

from benchmarks._ranks.pool import Ranks
from benchmarks.reliability.limits import limited_memory, time_limit
from benchmarks.reliability.oracle import judge_error
from benchmarks.reliability.rank_calls import make_rank_call, perform
from benchmarks.reliability.truth_ranks import wrong_across

COLLECTIVE = 20
"""Time limit of a collective in seconds; ranks never wait that long unless one hangs."""
ANSWER = 60
"""Seconds after which ranks that have not answered are stopped."""
BROKEN = re.compile(r"[Tt]imed out|[Tt]imeout|Connection|closed by peer|reset by peer")


def run_ranks(numbers: range, size: int) -> dict[str, Any]:
    """Make the calls of some numbers on `size` ranks; returns counts and defects."""
    ended: Counter[str] = Counter()
    defects: dict[str, str] = {}
    ranks = Ranks(size, COLLECTIVE)
    try:
        for number in numbers:
            how, wrong, broken = outcome(ranks, number)
            ended.update((how, "calls"))
            if wrong is not None:
                defects[str(number)] = wrong
            if broken:
                ranks.close()
                ranks = Ranks(size, COLLECTIVE)
    finally:
        ranks.close()
    return {"ended": dict(ended), "defects": defects}


def outcome(ranks: Ranks, number: int) -> tuple[str, str | None, bool]:
    """Make one call.

    Returns:
        How it ended, a description of the defect or None, and whether the ranks must be replaced.
    """
    calls = [make_rank_call(number, rank) for rank in range(ranks.size)]
    try:
        found = ranks.run(answers_of, range(number, number + 1), seconds=ANSWER)
    except (TimeoutError, EOFError, ConnectionError) as error:
        return "hang", f"{calls[0]}: a hang: {error}", True
    answers = [answer for (answer,) in found]
    try:
        wrong = wrong_across(calls, answers)
    except Exception as error:  # an error in the judge leaves the call unjudged
        wrong = f"not judged: {type(error).__name__}: {error}"
    broken = any(BROKEN.search(answer["wrong"] or "") for answer in answers)
    broken |= len({answer["ended"] for answer in answers}) > 1
    return answers[0]["ended"], None if wrong is None else f"{calls[0]}: {wrong}", broken


def answers_of(group: Any, rank: int, numbers: range) -> list[dict[str, Any]]:
    """Make the calls of some numbers on one rank of a group."""
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
