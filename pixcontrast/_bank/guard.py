"""Detection of updates that a bank must not get: during backward, and from two losses."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch


class UpdateGuard:
    """Checks made before a bank is updated. Code compiled by torch.compile skips them."""

    def __init__(self) -> None:
        self._updater: weakref.ref[object] | None = None
        self._warned = False

    def check_outside_backward(self) -> None:
        """Raise during a backward pass."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "MemoryBank: expected an update outside of a backward pass; got one during a "
                "backward pass (a checkpointed region runs its forward again during backward: call "
                "the loss outside of it)"
            )

    def claim(self, updater: object) -> None:
        """Record which loss updates the bank, and warn once if a second loss does."""
        if torch.compiler.is_compiling():
            return
        current = None if self._updater is None else self._updater()
        if current is None:
            self._updater = weakref.ref(updater)
        elif current is not updater and not self._warned:
            self._warned = True
            warnings.warn(
                "two losses update the same MemoryBank, so that each batch is stored twice; build "
                "one of them with update_bank=False",
                stacklevel=6,
            )

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be copied, and the updater belongs to this process.
        return {**self.__dict__, "_updater": None}
