"""Persistent buffers that only their own module lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class OwnBuffers(nn.Module):
    """A Module whose buffers are saved, loaded and moved, but not listed by its parent modules.

    DistributedDataParallel broadcasts the buffers of the wrapped module from rank 0 in every step,
    and a moving average of a model copies them. With a bank, that would cost its whole size each
    time and overwrite one rank's shard with another's. Both list the buffers of the outer module,
    which does not include these. `state_dict`, `.to()` and the module itself do include them.
    """

    _own: tuple[str, ...] = ()

    def register_own_buffer(self, name: str, tensor: Tensor) -> None:
        setattr(self, name, tensor)
        self._own = (*self._own, name)

    @contextmanager
    def _registered(self) -> Iterator[None]:
        """Register them as ordinary buffers inside the context, as PyTorch's own code expects."""
        for name in self._own:
            self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            for name in self._own:
                self.__dict__[name] = self._buffers.pop(name)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        with self._registered():
            return iter(list(super().named_buffers(*args, **kwargs)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OwnBuffers:
        with self._registered():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._registered():
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._registered():
            super()._load_from_state_dict(*args, **kwargs)
