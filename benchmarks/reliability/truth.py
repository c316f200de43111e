"""Whether the value of a call is correct: dispatch to the judge of its target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.truth_banks import check_bank, check_writes
from benchmarks.reliability.truth_equation import check_info_nce, copy_of
from benchmarks.reliability.truth_losses import check_loss
from benchmarks.reliability.truth_pixels import (
    WrongError,
    expect,
    is_readable,
    plain,
    without_channel,
)
from benchmarks.reliability.truth_samples import check_sample
from pixcontrast import MemoryBank


def before(call: Call) -> dict[str, Any]:
    """Record what a call will change and a judge needs: the bank's state, and the generator's."""
    known: dict[str, Any] = {}
    if call.target in ("info_nce", "loss"):
        given = call.arguments["generator"]
        known["draw"] = copy_of(
            given if isinstance(given, torch.Generator) else torch.default_generator
        )
    owner = getattr(call.function, "__self__", call.function)
    bank = owner if isinstance(owner, MemoryBank) else getattr(owner, "bank", None)
    if isinstance(bank, MemoryBank):
        known["bank"] = bank
        known["state"] = {name: value.clone() for name, value in bank.state_dict().items()}
    return known


def wrong_with(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> str | None:
    """Describe what is wrong with the value of a call, or return None."""
    try:
        _judge(call, known, result, gradients)
    except WrongError as wrong:
        return str(wrong)
    return None


def _judge(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> None:
    given = call.arguments
    if "bank" in known:
        check_bank(known["bank"])
    if call.target == "info_nce":
        check_info_nce(given, known, result, gradients)
    elif call.target == "loss":
        check_loss(call, known, result, gradients)
    elif call.target == "sampler":
        check_sample(call.function, given["labels"], given["preds"], given["ignore_index"], result)
    elif call.target == "bank.update" and is_readable(given["emb"], given["labels"]):
        emb = plain(given["emb"])
        labels = without_channel(plain(given["labels"]), emb)
        check_writes(known["bank"], known["state"], emb, labels)
    elif call.target == "head":
        _check_embedding(given["features"], result)


def _check_embedding(features: Tensor, embedding: Tensor) -> None:
    expected = (features.shape[0], 4, *features.shape[2:])
    expect(embedding.shape == expected, f"the embedding has the shape {tuple(embedding.shape)}")
    if is_readable(features):
        values = plain(features).double()
        moderate = bool((values.abs() <= 1e30).all())  # False for NaN
        expect(not (moderate and bool(embedding.isnan().any())), "the embedding is NaN")
