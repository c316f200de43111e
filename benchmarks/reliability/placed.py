"""Calls of the fuzz put onto another backend, or another device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from pixcontrast._equation.backends import Backend


def placed(call: Call, backend: Backend | None, device: str) -> Call | None:
    """The call with this backend in place of its own, on this device; None where it does not fit.

    The kernels know no float64. On another device only calls of `info_nce` whose arguments fit are
    made, and without a selection by chance: there a seed draws something else.
    """
    if backend is not None and "backend" in call.spoiled:
        return None
    name = {"info_nce": "anchors", "loss": "emb"}.get(call.target)
    vectors = None if name is None else call.arguments[name]
    if backend is not None:
        if call.target not in ("info_nce", "loss", "built loss"):
            return None
        if isinstance(vectors, Tensor) and vectors.dtype == torch.float64:
            return None
        if call.target == "loss":
            module: Any = call.function
            module.backend = backend
        else:
            call.arguments["backend"] = backend
    return call if device == "cpu" else _on_device(call, device)


def _on_device(call: Call, device: str) -> Call | None:
    if call.target != "info_nce" or call.spoiled:
        return None
    mining = call.arguments["mining"]
    if mining is not None and mining.strategy != "hardest":
        call.arguments["mining"] = None

    def there(**given: Any) -> Any:
        moved = {name: _moved(value, device) for name, value in given.items()}
        return call.function(**{**moved, "generator": None}).cpu()

    return call._replace(function=there)


def _moved(value: Any, device: str) -> Any:
    """Moved by operations that have a gradient, so that it comes home."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(one, device) for one in value)
    return value
