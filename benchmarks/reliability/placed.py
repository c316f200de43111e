"""Calls of the fuzz, moved to another backend or device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.snapshot import tensors_in

MOST_NUMBERS = 500
"""Maximum number of elements of the embeddings, for Triton's interpreter."""


def placed(call: Call, backend: str | None, device: str) -> Call | None:
    """Move a call to a backend and a device; returns None if it does not fit there.

    The kernels do not support float64. Triton's interpreter truncates where a GPU rounds to
    bfloat16, and needs minutes for many anchors; such calls are left out. On another device only
    calls of `info_nce` with suitable arguments are made, and without random selection, because the
    generators of two devices draw different numbers.
    """
    if backend is not None:
        if "backend" in call.spoiled or call.target not in ("info_nce", "loss", "built loss"):
            return None
        vectors = call.arguments.get({"info_nce": "anchors", "loss": "emb"}.get(call.target, ""))
        if isinstance(vectors, Tensor) and not _suits_kernels(call, vectors, device):
            return None
        if call.target == "loss":
            call.function.backend = backend  # type: ignore[attr-defined]
        else:
            call.arguments["backend"] = backend
    return call if device == "cpu" else _on_device(call, device)


def _suits_kernels(call: Call, vectors: Tensor, device: str) -> bool:
    if vectors.dtype == torch.float64:
        return False
    if device != "cpu":
        return True
    bank = getattr(call.function, "bank", None)
    entries = [call.arguments.get("contrast"), None if bank is None else bank.pixels]
    truncated = vectors.dtype == torch.bfloat16 and any(
        entry.dtype != torch.bfloat16 for entry in tensors_in(entries)
    )
    return not truncated and vectors.numel() <= MOST_NUMBERS


def _on_device(call: Call, device: str) -> Call | None:
    tensors = tensors_in(call.arguments.values())
    if call.target != "info_nce" or call.spoiled or not all(_can_move(one) for one in tensors):
        return None
    mining = call.arguments["negative_sampler"]
    if mining is not None and mining.strategy != "hardest":
        call.arguments["negative_sampler"] = None

    def call_there(**given: Any) -> Any:
        moved = {name: _moved(value, device) for name, value in given.items()}
        return call.function(**{**moved, "generator": None}).cpu()

    return call._replace(function=call_there)


def _can_move(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_nested


def _moved(value: Any, device: str) -> Any:
    """Move by differentiable operations, so that gradients reach the original tensors."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
