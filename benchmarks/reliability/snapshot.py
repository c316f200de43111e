"""Tensors before a call, byte for byte, to find changed arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Snapshot(NamedTuple):
    """A tensor, with its bytes, version counter and `requires_grad` at some time."""

    tensor: Tensor
    content: bytes | None
    version: int | None
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Snapshot:
        """Record a tensor."""
        version = None if tensor.is_inference() else tensor._version
        return cls(tensor, _content(tensor), version, tensor.requires_grad)

    def changes(self) -> str | None:
        """Describe a change of the tensor since the snapshot, or return None."""
        now = Snapshot.of(self.tensor)
        for field in ("content", "version", "requires_grad"):
            if getattr(now, field) != getattr(self, field):
                return f"the {field} of an argument has changed"
        return None


def snapshots(values: Iterable[Any]) -> list[Snapshot]:
    """Record every tensor among values and nested sequences."""
    return [Snapshot.of(tensor) for tensor in tensors_in(values)]


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield every tensor among values and nested sequences."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def _content(tensor: Tensor) -> bytes | None:
    """Return the bytes of a tensor, or None if they cannot be read."""
    if tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_nested:
        return None
    plain = tensor.detach().as_subclass(Tensor).resolve_neg().resolve_conj()
    copied = torch.empty(plain.numel(), dtype=plain.dtype).copy_(plain.flatten())
    return copied.view(torch.uint8).numpy().tobytes()
