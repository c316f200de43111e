"""A short run of the random calls of ranks, and the judge of them judged."""

import copy
from typing import Any

import pytest
import torch
from pool import Pool

from benchmarks.reliability.calls import Call, make_call
from benchmarks.reliability.fuzz import outcome
from benchmarks.reliability.judge import wrong_with

JOB = "benchmarks.reliability.fuzz.answers_of"
NUMBERS = range(300)
Made = list[tuple[list[Call], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def made(pool: Pool) -> Made:
    """Calls of two ranks, and what they answered."""
    # One job has a time limit.
    parts = [pool.run(JOB, 2, 2, NUMBERS[first : first + 60]) for first in range(0, 300, 60)]
    answers = [[answer for part in parts for answer in part[rank]] for rank in range(2)]
    calls = [[make_call(number, rank, 2) for rank in range(2)] for number in NUMBERS]
    return [
        (one, list(other)) for one, other in zip(calls, zip(*answers, strict=True), strict=True)
    ]


@pytest.mark.plain_empty
def test_random_calls_of_two_ranks(made: Made) -> None:
    defects = {
        n: wrong for n, one in zip(NUMBERS, made, strict=True) if (wrong := wrong_with(*one))
    }
    assert defects == {}
    ended = [answers[0]["ended"] for _, answers in made]
    assert min(ended.count("value"), ended.count("refused")) > 25


@pytest.mark.plain_empty
def test_random_calls_of_three_ranks(pool: Pool) -> None:
    numbers = range(1000, 1040)
    answers = pool.run(JOB, 3, 3, numbers)
    for number, answer in zip(numbers, zip(*answers, strict=True), strict=True):
        assert wrong_with([make_call(number, rank, 3) for rank in range(3)], answer) is None


def share(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    """What one rank has more another has less: the mean is right."""
    if "loss" in answers[0] and calls[0].given["loss"]["gather"]:
        for answer, more in zip(answers, (0.1, -0.1), strict=True):
            answer["loss"] = answer["loss"] + more


def loss(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    if "loss" in answers[1]:
        answers[1]["loss"] = 1.1 * answers[1]["loss"] + 0.1


def gradient(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    if answers[1].get("gradient") is not None:
        answers[1]["gradient"] = 1.5 * answers[1]["gradient"]


def anchors(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    if "anchors" in answers[0]:
        answers[0]["anchors"] = -answers[0]["anchors"]


def sample(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    if "labels" in answers[1]:
        answers[1]["labels"] = (answers[1]["labels"].long() + 1).clamp(max=255)


def bank(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    """A region of one rank's bank is another."""
    if "regions" in answers[1].get("after", {}):
        answers[1]["after"]["regions"] *= -1


def one_rank_alone(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    answers[1] = {"ended": "refused", "wrong": None}


def an_error(calls: list[Call], answers: list[dict[str, Any]]) -> None:
    answers[1]["wrong"] = "IndexError"


@pytest.mark.parametrize(
    ("tamper", "words", "least"),
    [
        (share, "its share of the loss is off", 15),
        (loss, "off by", 20),
        (gradient, "the gradient of emb is off", 5),
        (anchors, "the anchors are", 20),
        (sample, "sample", 20),
        (bank, "bank", 10),
        (one_rank_alone, "different ways", 25),
        (an_error, "IndexError", 100),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_judge_sees_what_is_wrong(made: Made, tamper: Any, words: str, least: int) -> None:
    seen = 0
    for calls, answers in made:
        changed = copy.deepcopy(answers)
        tamper(calls, changed)
        seen += words in (wrong_with(calls, changed) or "")
    assert seen >= least


def test_a_hang_is_a_defect() -> None:
    class Silent:
        size = 2

        def run(self, *arguments: Any, seconds: float) -> Any:
            raise TimeoutError("rank 1 does not answer")

    how, wrong, broken = outcome(Silent(), 0)  # type: ignore[arg-type]
    assert (how, broken) == ("hang", True)
    assert wrong is not None
    assert "rank 1 does not answer" in wrong
    assert not torch.distributed.is_initialized()
