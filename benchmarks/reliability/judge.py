"""Whether a call ended as it may: in a correct value, or in an error that names the argument."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.reliability.calls import Arguments, Call
from benchmarks.reliability.equation import Equation, judge
from benchmarks.reliability.losses import check_losses
from benchmarks.reliability.perform import Answer, answer_of, plain
from benchmarks.reliability.plain import WrongError, expect, is_readable, same_bits
from benchmarks.reliability.rings import check_bank, check_rings
from benchmarks.reliability.samples import check_sample


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
    if answer.get("before"):
        for one in answers:
            check_bank(one["after"])
    if call.target == "info_nce":
        _check_info_nce(given, answer)
    readable = all(is_readable(*one.given["call"].values()) for one in calls)
    if call.target == "head":
        _check_embedding(call, answer["embedding"])
    elif call.target == "sampler" and readable:
        labels, preds = (given[name] for name in ("labels", "preds"))
        check_sample(answer["sampler"], labels, preds, given["ignore_index"], answer["sample"])
    elif readable and call.target != "info_nce":
        if call.target == "loss":
            check_losses(calls, answers)
        if answer["before"]:
            _check_banks(calls, answers)


def _check_info_nce(given: Arguments, answer: Answer) -> None:
    anchors, labels, loss = given["anchors"], given["anchor_labels"], answer["loss"]
    shape = torch.Size(labels.shape if given["reduction"] == "none" else ())
    expect(loss.shape == shape, f"the loss has the shape {tuple(loss.shape)}")
    if not is_readable(anchors):
        return
    contrast, of_contrast = given["contrast"], given["contrast_labels"]
    if contrast is None or isinstance(contrast, Tensor):
        contrast, of_contrast = [contrast], [of_contrast]
    equation = Equation(
        plain(anchors),
        labels,
        [None if c is None else plain(c) for c in contrast],
        [None] * len(contrast) if of_contrast is None else list(of_contrast),
        temperature=float(given["temperature"]),
        denominator=given["denominator"],
        weight=None if given["weight"] is None else plain(given["weight"]),
        reduction=given["reduction"],
        ignore=given["ignore_index"],
        mining=given["negative_sampler"] or answer["mining"],
        draw=answer["draw"],
    )
    gradients = {"contrast[0]" if n == "contrast" else n: g for n, g in answer["gradients"].items()}
    judge(equation, loss, gradients)


def _check_embedding(call: Call, embedding: Tensor) -> None:
    features = call.given["call"]["features"]
    expected = (features.shape[0], call.given["head"]["dim"], *features.shape[2:])
    expect(embedding.shape == expected, f"the embedding has the shape {tuple(embedding.shape)}")
    if is_readable(features):
        moderate = bool((plain(features).double().abs() <= 1e30).all())  # False for NaN
        expect(not (moderate and bool(embedding.isnan().any())), "the embedding is NaN")


def _check_banks(calls: Sequence[Call], answers: Sequence[Answer]) -> None:
    """Check that every rank holds the same bank, or its shard of the entries of all ranks."""
    call, options = calls[0], calls[0].given["bank"]
    updates = call.target != "loss" or (call.training and answers[0]["options"]["update_bank"])
    batches = [
        (plain(own.given["call"]["emb"]), plain(own.given["call"]["labels"]))
        for own in (calls if updates else ())
    ]
    for rank, answer in enumerate(answers):
        sharded = "shard" in answer["before"]
        shard = (rank, len(calls)) if sharded else (0, 1)
        states = answer["before"], answer["after"]
        check_rings(*states, batches, options["ignore_index"], options["pixels_per_image"], shard)
        same = sharded or same_bits(answer["after"], answers[0]["after"])
        expect(same, "the banks of two ranks are different")
        if call.target == "checkpoint":
            expect(answer["refused"], "the shard of another rank was loaded")
            loaded = same_bits(answer["loaded"], answer["before"])
            expect(loaded, "a loaded state differs from the saved one")
            goes_on = same_bits(answer["again"], answer["after"])
            expect(goes_on, "a bank that was loaded does not go on as the one that was saved")
