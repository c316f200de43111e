"""Whether a value is right: what has to be known before a call, and who judges its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.truth_banks import wrong_bank, wrong_writes
from benchmarks.reliability.truth_equation import copy_of, wrong_info_nce
from benchmarks.reliability.truth_losses import wrong_loss
from benchmarks.reliability.truth_pixels import plain, seen
from benchmarks.reliability.truth_samples import wrong_sample
from pixcontrast.bank import MemoryBank


def before(call: Call) -> dict[str, Any]:
    """What the call will change and a judge has to know: the bank, and what draws."""
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
    """What is wrong with a value, or None."""
    given = call.arguments
    if "bank" in known and (wrong := wrong_bank(known["bank"])):
        return wrong
    if call.target == "info_nce":
        return wrong_info_nce(given, known, result, gradients)
    if call.target == "loss":
        return wrong_loss(call, known, result, gradients)
    if call.target == "sampler":
        return wrong_sample(
            call.function, given["labels"], given["preds"], given["ignore_index"], result
        )
    if call.target == "bank.update" and seen(given["emb"], given["labels"]):
        emb, labels = plain(given["emb"]), plain(given["labels"])
        return wrong_writes(known["bank"], known["state"], emb, labels)
    if call.target == "head":
        return _wrong_embedding(given["features"], result)
    return None


def _wrong_embedding(features: Tensor, embedding: Tensor) -> str | None:
    if embedding.shape != (features.shape[0], 4, *features.shape[2:]):
        return f"the embedding has the shape {tuple(embedding.shape)}"
    if not seen(features):
        return None
    values = plain(features).double()
    if values.numel() and float(values.abs().max()) > 1e30:
        return None
    if bool(torch.isfinite(features).all()) and bool(embedding.isnan().any()):
        return "the embedding is NaN"
    return None
