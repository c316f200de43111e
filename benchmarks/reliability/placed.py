"""Calls of the fuzz put onto another backend, or another device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.snapshot import tensors_in
from pixcontrast._triton import Backend

MOST_NUMBERS = 500
"""In the embeddings of a call, for the interpreter."""


def placed(call: Call, backend: Backend | None, device: str) -> Call | None:
    """The call with this backend in place of its own, on this device; None where it does not fit.

    The kernels know no float64. Triton's interpreter cuts digits off where it makes a bfloat16,
    which a card rounds, and a call of many anchors takes it minutes: such calls are left out. On
    another device only calls of `info_nce` whose arguments fit are made, and without a selection by
    chance: there a seed draws something else.
    """
    if backend is not None and "backend" in call.spoiled:
        return None
    name = {"info_nce": "anchors", "loss": "emb"}.get(call.target)
    vectors = None if name is None else call.arguments[name]
    if backend is not None:
        if call.target not in ("info_nce", "loss", "built loss"):
            return None
        if isinstance(vectors, Tensor) and not _suits_kernels(call, vectors, device):
            return None
        if call.target == "loss":
            module: Any = call.function
            module.backend = backend
        else:
            call.arguments["backend"] = backend
    return call if device == "cpu" else _on_device(call, device)


def _suits_kernels(call: Call, vectors: Tensor, device: str) -> bool:
    if vectors.dtype == torch.float64:
        return False
    if device != "cpu":
        return True
    entries = call.arguments.get("contrast")
    entries = list(entries) if isinstance(entries, (list, tuple)) else [entries]
    bank = getattr(call.function, "bank", None)
    if bank is not None:
        entries.append(bank.pixels)
    dtypes = {entry.dtype for entry in entries if isinstance(entry, Tensor)}
    cut_off = vectors.dtype == torch.bfloat16 and not dtypes <= {torch.bfloat16}
    return not cut_off and vectors.numel() <= MOST_NUMBERS


def _on_device(call: Call, device: str) -> Call | None:
    if call.target != "info_nce" or call.spoiled:
        return None
    if not all(_can_move(tensor) for tensor in tensors_in(call.arguments.values())):
        return None
    mining = call.arguments["negative_sampler"]
    if mining is not None and mining.strategy != "hardest":
        call.arguments["negative_sampler"] = None

    def there(**given: Any) -> Any:
        moved = {name: _moved(value, device) for name, value in given.items()}
        return call.function(**{**moved, "generator": None}).cpu()

    return call._replace(function=there)


def _can_move(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_nested


def _moved(value: Any, device: str) -> Any:
    """Moved by operations that have a gradient, so that it comes home."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
