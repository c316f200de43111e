"""Persistent buffers that belong to one module, and that nothing above it takes for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class OwnBuffers(nn.Module):
    """A Module whose buffers are saved, loaded and moved with it, and listed by it alone.

    DistributedDataParallel sends the buffers of the module it wraps from rank 0 to all others in
    every step, and a moving average of a model copies them: with a bank among them that would cost
    its whole size each time, and would overwrite one rank's shard by another's. Both ask the
    wrapped module, which does not list these; `state_dict`, `.to()` and the module itself do.
    """

    _own: tuple[str, ...] = ()

    def register_own_buffer(self, name: str, tensor: Tensor) -> None:
        setattr(self, name, tensor)
        self._own = (*self._own, name)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        """A while in which they are ordinary buffers, as PyTorch's own code expects."""
        for name in self._own:
            self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            for name in self._own:
                self.__dict__[name] = self._buffers.pop(name)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        with self._listed():
            return iter(list(super().named_buffers(*args, **kwargs)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OwnBuffers:
        with self._listed():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._listed():
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._listed():
            super()._load_from_state_dict(*args, **kwargs)
