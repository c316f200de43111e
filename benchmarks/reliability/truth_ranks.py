"""Whether several ranks answer what one process with all data answers, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.rank_calls import EVERYTHING, RankCall
from benchmarks.reliability.truth_banks import State, check_bank, check_rings
from benchmarks.reliability.truth_equation import Equation, judge
from benchmarks.reliability.truth_losses import (
    LossStep,
    check_gradient,
    check_no_nan,
    check_sampling,
    equation_of,
)
from benchmarks.reliability.truth_pixels import WrongError, expect, plain
from pixcontrast import AnchorSample, MemoryBank

Answer = dict[str, Any]


def wrong_across(calls: Sequence[RankCall], answers: Sequence[Answer]) -> str | None:
    """Describe what is wrong with the answers of all ranks, in rank order, or return None."""
    try:
        _judge(calls, answers)
    except WrongError as wrong:
        return str(wrong)
    return None


def _judge(calls: Sequence[RankCall], answers: Sequence[Answer]) -> None:
    for rank, answer in enumerate(answers):
        expect(answer["wrong"] is None, f"rank {rank}: {answer['wrong']}")
    ended = [answer["ended"] for answer in answers]
    expect(len(set(ended)) == 1, f"ranks ended in different ways: {ended}")
    if ended[0] == "value":
        if calls[0].bank is not None:
            _check_banks(calls, answers)
        if calls[0].target == "loss":
            _check_losses([_step_of(*one) for one in zip(calls, answers, strict=True)], calls[0])


def _check_banks(calls: Sequence[RankCall], answers: Sequence[Answer]) -> None:
    """Check that every rank holds the same bank, or its shard of the entries of all ranks."""
    call = calls[0]
    assert call.bank is not None  # the caller checks it
    sharded = call.bank["sharded"]
    updates = call.target != "loss" or (call.training and call.options["update_bank"])
    batches = [
        (plain(own.arguments["emb"]), plain(own.arguments["labels"])) for own in calls if updates
    ]
    for rank, answer in enumerate(answers):
        bank = MemoryBank(**{**call.bank, "sharded": False})
        after = {name: value for name, value in answer["after"].items() if name != "shard"}
        for name, value in bank.state_dict().items():
            value.copy_(after[name])
        check_bank(bank)
        shard = (rank, len(calls)) if sharded else (0, 1)
        check_rings(bank, after, answer["before"], batches, shard)
        same = sharded or _same(answer["after"], answers[0]["after"])
        expect(same, "the banks of two ranks are different")
        if call.target == "checkpoint":
            expect(answer["refused"], "the shard of another rank was loaded")
            loaded = _same(answer["loaded"], answer["before"])
            expect(loaded, "a loaded state differs from the saved one")
            goes_on = _same(answer["again"], answer["after"])
            expect(goes_on, "a bank that was loaded does not go on as the one that was saved")


def _step_of(call: RankCall, answer: Answer) -> LossStep:
    given, mining = call.arguments, call.options["negative_sampler"]
    preds, weight = (
        None if given[name] is None else plain(given[name]) for name in ("preds", "weight")
    )
    certain = (
        mining is None
        or mining.strategy == "hardest"
        or all(
            number in (None, EVERYTHING) for number in (mining.num_negatives, mining.num_positives)
        )
    )
    return LossStep(
        call.kind,
        {**call.options, "contrast_with": answer["contrast_with"]},
        *(plain(given["emb"]), plain(given["labels"]), preds, weight),
        AnchorSample(answer["indices"], answer["labels"]),
        *(answer["anchors"], answer["loss"], answer["gradient"], answer["before"]),
        None if call.bank is None else call.bank["num_classes"],
        # Ranks number pairs differently from one process: random selections are not compared.
        torch.Generator() if certain else None,
    )


def _check_losses(steps: list[LossStep], call: RankCall) -> None:
    finite = [check_sampling(step) for step in steps]
    if not all(finite):
        return
    for step in steps:
        check_no_nan(step)
    sharded = call.bank is not None and call.bank["sharded"]
    if call.options["gather"]:
        _check_together(steps, sharded)
        return
    for rank, step in enumerate(steps):
        equation = equation_of(steps, [rank], sharded)
        if equation is not None:
            verdict = judge(equation, step.loss.double() / step.factor, {})
            check_gradient(step, verdict, step.factor)


def _check_together(steps: list[LossStep], sharded: bool) -> None:
    """Check a loss that gathers: rank r returns W·S_r/n, so means over ranks are those of one."""
    size, factor = len(steps), steps[0].factor
    equation = equation_of(steps, range(size), sharded)
    if equation is None:
        return
    losses = [step.loss.double() / factor for step in steps]
    verdict = judge(equation, torch.stack(losses).mean(dim=0), {})
    if not verdict.compared:
        return
    sums, weights = _sums(equation, [len(step.anchors) for step in steps])
    total, most, start = 1.0, float(weights.sum()), 0
    if steps[0].options["reduction"] == "mean":
        positive = equation.pairs().positive.any(dim=1)
        total, most = float((weights * positive).sum()) or 1.0, 1.0
    for rank, step in enumerate(steps):
        # A share is a part of the mean, or W times the whole of it.
        allowed = size * verdict.of_a_mean * max(1.0, most) + 1e-37
        off = abs(float(losses[rank]) - size * sums[rank] / total)
        expect(off <= allowed, f"rank {rank}: its share of the loss is off by {off:.2e}")
        part = slice(start, start := start + len(step.anchors))
        check_gradient(step, verdict, size * factor, part, more=_of_parts(step, steps))


def _sums(equation: Equation, sizes: list[int]) -> tuple[list[float], Tensor]:
    """Return the weighted sum of the losses of each rank, and the weights of all anchors."""
    anchors, weight = equation.anchors, equation.options["weight"]
    weights = torch.ones(len(anchors)) if weight is None else weight
    losses = equation.in_double(
        anchors.double(), equation.rounded(), reduction="none", weight=weights.double()
    )
    return [float(part.sum()) for part in torch.split(losses, sizes)], weights.double()


def _of_parts(step: LossStep, steps: list[LossStep]) -> float:
    """Return the allowed error from rounding each rank's part of a gradient to its dtype.

    The coefficients of an entry are parts of a mean, so a part is at most 1/τ.
    """
    most, longest = 1.0, 0.0
    if step.options["reduction"] == "sum":
        most = float(sum(len(one.anchors) for one in steps))
    if len(step.anchors):
        longest = float(step.anchors.double().norm(dim=1).max())
    info = torch.finfo(step.emb.dtype)
    largest = info.eps * max(longest, 1.0) * most / float(step.options["temperature"])
    return (len(steps) + 2) * (largest + info.smallest_normal)


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
