"""Whether what several ranks answered is what one process with everything answers, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.rank_calls import EVERYTHING, RankCall
from benchmarks.reliability.truth_banks import wrong_bank, wrong_rings
from benchmarks.reliability.truth_equation import Equation, Verdict, judge, rounded_to
from benchmarks.reliability.truth_losses import (
    batch_regions,
    sampled_vectors,
    wrong_anchors,
    wrong_gradient,
)
from benchmarks.reliability.truth_pixels import flat, flat_predictions, is_present, plain
from benchmarks.reliability.truth_samples import wrong_sample
from pixcontrast import AnchorSample, MemoryBank, RegionContrastLoss
from pixcontrast.functional import info_nce

Answers = Sequence[dict[str, Any]]


def wrong_across(calls: Sequence[RankCall], answers: Answers) -> str | None:
    """What is wrong with the answers of all ranks, in rank order, or None."""
    for rank, answer in enumerate(answers):
        if answer["wrong"] is not None:
            return f"rank {rank}: {answer['wrong']}"
    ended = [answer["ended"] for answer in answers]
    if len(set(ended)) > 1:
        return f"ranks ended in different ways: {ended}"
    if ended[0] != "value":
        return None
    if calls[0].bank is not None and (wrong := _wrong_banks(calls, answers)):
        return wrong
    if calls[0].target == "loss":
        return _wrong_losses(calls, answers)
    return None


def _wrong_banks(calls: Sequence[RankCall], answers: Answers) -> str | None:
    """Of every rank: the same, or its shard of what all ranks had, in rank order."""
    call, size = calls[0], len(calls)
    assert call.bank is not None  # asked by who knows
    sharded = call.bank["sharded"]
    options = {**call.bank, "sharded": False}
    updates = call.target != "loss" or (call.training and call.options["update_bank"])
    batches = [
        (plain(own.arguments["emb"]), plain(own.arguments["labels"])) for own in calls if updates
    ]
    for rank, answer in enumerate(answers):
        bank = MemoryBank(**options)
        after = {name: value for name, value in answer["after"].items() if name != "shard"}
        for name, value in bank.state_dict().items():
            value.copy_(after[name])
        if wrong := wrong_bank(bank):
            return f"rank {rank}: {wrong}"
        shard = (rank, size) if sharded else (0, 1)
        if wrong := wrong_rings(bank, after, answer["before"], batches, shard):
            return f"rank {rank}: {wrong}"
        if not sharded and not _same(answer["after"], answers[0]["after"]):
            return "the banks of two ranks are different"
        if call.target == "checkpoint":
            if not answer["refused"]:
                return "the shard of another rank was loaded"
            if not _same(answer["loaded"], answer["before"]):
                return "a state that was loaded is another"
            if not _same(answer["again"], answer["after"]):
                return "a bank that was loaded does not go on as the one that was saved"
    return None


def _wrong_losses(calls: Sequence[RankCall], answers: Answers) -> str | None:
    vectors = []
    for call, answer in zip(calls, answers, strict=True):
        if wrong := _wrong_anchors_of(call, answer):
            return wrong
        sample = AnchorSample(answer["indices"], answer["labels"])
        vectors.append(
            sampled_vectors(plain(call.arguments["emb"]), sample, call.options["ignore_index"])
        )
    if not all(bool(torch.isfinite(one).all()) for one in vectors):
        return None
    if calls[0].options["normalize"]:
        for answer in answers:
            if bool(answer["loss"].isnan()):
                return "the loss is NaN"
    if calls[0].options["gather"]:
        return _wrong_together(calls, answers)
    for rank in range(len(calls)):
        if wrong := _wrong_alone(calls, answers, rank):
            return f"rank {rank}: {wrong}"
    return None


def _wrong_anchors_of(call: RankCall, answer: dict[str, Any]) -> str | None:
    given, ignore = call.arguments, call.options["ignore_index"]
    emb = plain(given["emb"])
    sample = AnchorSample(answer["indices"], answer["labels"])
    preds = None if given["preds"] is None else flat_predictions(plain(given["preds"]), emb)
    labels = flat(plain(given["labels"]), emb)
    sampler = call.options["anchor_sampler"]
    if wrong := wrong_sample(sampler, labels, preds, ignore, sample):
        return wrong
    vectors = sampled_vectors(emb, sample, ignore)
    if not bool(torch.isfinite(vectors).all()):
        return None
    return wrong_anchors(answer["anchors"], vectors, normalize=call.options["normalize"])


def _weights(call: RankCall, answer: dict[str, Any]) -> Tensor | None:
    weight = call.arguments["weight"]
    if weight is None:
        return None
    picked = flat(plain(weight), plain(call.arguments["emb"])).flatten()
    return picked[answer["indices"]]


def _equation(
    calls: Sequence[RankCall], answers: Answers, of: Sequence[int]
) -> tuple[Equation, float] | None:
    """The anchors of some ranks against what a loss contrasts them with; its factor."""
    options = calls[0].options
    ignore, tau = options["ignore_index"], float(options["temperature"])
    contrast: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    off = 0.0
    for source in answers[0]["contrast_with"]:
        if source != "batch":
            bank = calls[0].bank
            assert bank is not None  # where else would its entries come from
            # Of a whole bank any rank's will do; of shards, all of them.
            for answer in answers if bank["sharded"] else answers[:1]:
                held, count = (answer["before"][source[:-1] + name] for name in ("s", "_count"))
                written = torch.arange(held.shape[1]) < count[:, None]
                classes = torch.arange(bank["num_classes"])[:, None]
                contrast.append(held.flatten(0, 1))
                labels.append(torch.where(written, classes, ignore).flatten())
        elif issubclass(calls[0].kind, RegionContrastLoss):
            for rank in of:
                emb = plain(calls[rank].arguments["emb"])
                marked = flat(plain(calls[rank].arguments["labels"]), emb).to(torch.int64)
                means, own, off_by = batch_regions(emb, marked, ignore, None)
                contrast.append(means)
                labels.append(own)
                off = max(off, off_by)
        else:
            contrast.append(None)
            labels.append(None)
    mining = options["negative_sampler"]
    if off >= 0.1 or (mining is not None and not _leaves_nothing_to_chance(mining)):
        return None
    weights = [_weights(calls[rank], answers[rank]) for rank in of]
    equation = Equation(
        torch.cat([answers[rank]["anchors"] for rank in of]),
        torch.cat([answers[rank]["labels"].to(torch.int64) for rank in of]),
        contrast,
        labels,
        {
            "temperature": tau,
            "denominator": options["denominator"],
            "weight": None
            if weights[0] is None
            else torch.cat([w for w in weights if w is not None]),
            "reduction": options["reduction"],
            "ignore_index": ignore,
        },
        mining,
        torch.Generator(),
        off,
    )
    return equation, tau / float(options["base_temperature"] or tau)


def _leaves_nothing_to_chance(mining: Any) -> bool:
    numbers = (mining.num_negatives, mining.num_positives)
    return mining.strategy == "hardest" or all(n in (None, EVERYTHING) for n in numbers)


def _wrong_alone(calls: Sequence[RankCall], answers: Answers, rank: int) -> str | None:
    """A loss that does not gather: the anchors of one rank, against a bank of all of them."""
    made = _equation(calls, answers, [rank])
    if made is None:
        return None
    equation, factor = made
    verdict = judge(equation, answers[rank]["loss"].double() / factor, {})
    if verdict.wrong is not None:
        return verdict.wrong
    return _wrong_gradient_of(calls[rank], answers[rank], verdict, factor, slice(None), 1)


def _wrong_together(calls: Sequence[RankCall], answers: Answers) -> str | None:
    """A loss that gathers: W·S_r/n on rank r, so that means over ranks are those of one rank."""
    size = len(calls)
    made = _equation(calls, answers, range(size))
    if made is None:
        return None
    equation, factor = made
    losses = [answer["loss"].double() / factor for answer in answers]
    verdict = judge(equation, torch.stack(losses).mean(dim=0), {})
    if verdict.wrong is not None:
        return verdict.wrong
    if not verdict.compared:
        return None
    of_each = _shares(equation, answers)
    start = 0
    for rank, share in enumerate(of_each):
        stop = start + len(answers[rank]["anchors"])
        # A share is a part of the mean, or the whole of it, W times.
        allowed = size * verdict.of_a_mean * max(1.0, _most(equation)) + 1e-37
        off = abs(float(losses[rank]) - share)
        if not off <= allowed:
            return f"rank {rank}: its share of the loss is off by {off:.2e}"
        wrong = _wrong_gradient_of(
            calls[rank], answers[rank], verdict, factor, slice(start, stop), size
        )
        if wrong is not None:
            return f"rank {rank}: {wrong}"
        start = stop
    return None


def _shares(equation: Equation, answers: Answers) -> list[float]:
    """W·S_r/n, or W·S_r of a sum."""
    anchors, labels, contrast, contrast_labels, options, mining, draw, _ = equation
    weight = torch.ones(len(anchors)) if options["weight"] is None else options["weight"]
    entries = [None if c is None else rounded_to(c, anchors.dtype) for c in contrast]
    given = {**options, "reduction": "none", "weight": weight.double(), "backend": "dense"}
    given |= {"negative_sampler": mining, "generator": draw}
    losses = info_nce(anchors.double(), labels, entries, contrast_labels, **given)
    # What has no positive counts for nothing: its loss is 0 whatever the weight.
    positives = _has_positive(equation)
    total = float((weight.double() * positives).sum())
    if options["reduction"] == "sum":
        total = 1.0
    size, shares, start = len(answers), [], 0
    for answer in answers:
        stop = start + len(answer["anchors"])
        shares.append(size * float(losses[start:stop].sum()) / (total if total > 0 else 1.0))
        start = stop
    return shares


def _has_positive(equation: Equation) -> Tensor:
    ignore, labels = equation.options["ignore_index"], equation.labels
    found = torch.zeros(len(labels), dtype=torch.int64)
    for own in equation.contrast_labels:
        columns = labels if own is None else own.to(torch.int64)
        found += ((labels[:, None] == columns) & is_present(columns, ignore)).sum(dim=1) - int(
            own is None
        )
    counted: Tensor = (found > 0) & is_present(labels, ignore)
    return counted


def _most(equation: Equation) -> float:
    """Σ w of a sum, 1 of a mean."""
    if equation.options["reduction"] == "mean":
        return 1.0
    weight = equation.options["weight"]
    return len(equation.anchors) if weight is None else float(weight.sum())


def _wrong_gradient_of(
    call: RankCall,
    answer: dict[str, Any],
    verdict: Verdict,
    factor: float,
    part: slice,
    size: int,
) -> str | None:
    gradient = answer["gradient"]
    if gradient is None or verdict.gradient is None:
        return None
    emb = plain(call.arguments["emb"])
    anchors, most = answer["anchors"], 1.0
    longest = float(anchors.double().norm(dim=1).max()) if len(anchors) else 0.0
    if call.options["reduction"] == "sum":
        most = float(len(verdict.gradient))
    # Each rank rounds its part of a gradient to the dtype, as which it travels: half an eps of at
    # most 1/τ, the coefficients of an entry being parts of a mean.
    info = torch.finfo(emb.dtype)
    of_parts = (size + 2) * (
        info.eps * max(longest, 1.0) * most / float(call.options["temperature"])
        + info.smallest_normal
    )
    allowed = (verdict.allowed + (of_parts if size > 1 else 0.0)) * size * factor
    return wrong_gradient(
        gradient,
        emb,
        AnchorSample(answer["indices"], answer["labels"]),
        call.options["ignore_index"],
        verdict.gradient[part] * size * factor,
        allowed,
        normalize=call.options["normalize"],
    )


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
