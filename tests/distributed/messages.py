"""What a process says to others: the operators of torch.distributed that it calls."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Messages(TorchDispatchMode):
    """A list of the collectives that are called meanwhile, DDP's among them.

    Those called from within one of the loss's operators, which hide what they do, are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def clear(self) -> None:
        self.seen.clear()

    def bytes_of(self, name: str) -> int:
        """The bytes of the tensors that all calls of one collective were given."""
        return sum(size for called, size in self.seen if called == name)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            self.seen.append((func._opname, sum(tensor.nbytes for tensor in tensors)))
        return func(*args, **(kwargs or {}))
