"""Whether a call ended as it may: in a correct value, or in an error that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.equation import judge
from benchmarks.reliability.losses import check_losses, check_sample
from benchmarks.reliability.options import Arguments
from benchmarks.reliability.perform import Answer, answer_of, plain
from benchmarks.reliability.plain import WrongError, expect, is_readable, same_bits
from benchmarks.reliability.step import LARGEST_FEATURE


def defect_of(call: Call) -> tuple[str, str | None]:
    """Make a call in this process; returns how it ended and a description of its defect or None."""
    answer = answer_of(call)
    return answer["ended"], wrong_with([call], [answer])


def wrong_with(calls: Sequence[Call], answers: Sequence[Answer]) -> str | None:
    """Describe what is wrong with the answers of all ranks, in rank order, or return None."""
    try:
        for rank, answer in enumerate(answers):
            where = f"rank {rank}: " if len(answers) > 1 else ""
            expect(answer["wrong"] is None, f"{where}{answer['wrong']}")
        ended = [answer["ended"] for answer in answers]
        expect(len(set(ended)) == 1, f"ranks ended in different ways: {ended}")
        if ended[0] == "value":
            _judge(calls, answers)
    except WrongError as wrong:
        return str(wrong)
    except Exception as error:  # an error in the judge leaves the call unjudged
        return f"not judged: {type(error).__name__}: {error}"
    return None


def _judge(calls: Sequence[Call], answers: Sequence[Answer]) -> None:
    call, answer, given = calls[0], answers[0], calls[0].given["call"]
    if call.target == "info_nce":
        _check_info_nce(given, answer)
    elif call.target == "head":
        _check_embedding(call, answer["embedding"])
    elif all(is_readable(*one.given["call"].values()) for one in calls):
        if call.target == "sampler":
            labels, ignore = given["labels"], given["ignore_index"]
            check_sample(answer["sampler"], labels, ignore, answer["sample"])
        if call.target == "loss":
            check_losses(calls, answers)
        if answer.get("before"):
            _check_banks(answers)


def _check_info_nce(given: Arguments, answer: Answer) -> None:
    anchors, labels, loss = given["anchors"], given["anchor_labels"], answer["loss"]
    shape = torch.Size(labels.shape if given["reduction"] == "none" else ())
    expect(loss.shape == shape, f"the loss has the shape {tuple(loss.shape)}")
    if not is_readable(anchors):
        return
    contrast, of_contrast = given["contrast"], given["contrast_labels"]
    if contrast is None or isinstance(contrast, Tensor):
        contrast, of_contrast = [contrast], [of_contrast]
    equation = {
        **given,
        "anchors": plain(anchors),
        "anchor_labels": plain(labels),
        "contrast": [None if c is None else plain(c) for c in contrast],
        "contrast_labels": [
            None if own is None else plain(own) for own in of_contrast or [None] * len(contrast)
        ],
        "weight": None if given["weight"] is None else plain(given["weight"]),
        "negative_sampler": given["negative_sampler"] or answer["mining"],
    }
    gradients = {"contrast[0]" if n == "contrast" else n: g for n, g in answer["gradients"].items()}
    judge(equation, answer["draw"], loss, gradients)


def _check_embedding(call: Call, embedding: Tensor) -> None:
    features = call.given["call"]["features"]
    expected = (features.shape[0], call.given["head"]["dim"], *features.shape[2:])
    expect(embedding.shape == expected, f"the embedding has the shape {tuple(embedding.shape)}")
    if is_readable(features):
        most = LARGEST_FEATURE if call.given["head"]["norm"] == "layer" else 1e30
        moderate = bool((plain(features).double().abs() <= most).all())  # False for NaN
        expect(not (moderate and bool(embedding.isnan().any())), "the embedding is NaN")


def _check_banks(answers: Sequence[Answer]) -> None:
    """Check what holds for every bank: the range of its counts, unit length, equality on ranks."""
    for state in (answer["after"] for answer in answers):
        for queue in ("pixel", "region"):
            count, held = state[f"{queue}_count"], state[f"{queue}s"]
            in_range = bool(((count >= 0) & (count <= held.shape[1])).all())
            expect(in_range, "a count of the bank is out of its range")
            written = held[torch.arange(held.shape[1]) < count[:, None]].double()
            unit = bool(((written.norm(dim=1) - 1).abs() < 2**-7).all())
            expect(unit, "a vector of the bank is not of unit length")
        same = "shard" in state or same_bits(state, answers[0]["after"])
        expect(same, "the banks of two ranks are different")
