"""Counts the flops of the matrix products that are really made, inside of our operators too."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pixcontrast._info_nce import operators

NAMESPACE = "pixcontrast"
OURS = {
    operator._name: operator
    for operator in vars(operators).values()
    if hasattr(operator, "_init_fn")
}


class ProductFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Two for each multiplication of a product, or of an attention.

    Attributes:
        flops: how many so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            # What an operator does is hidden from a mode, unless it is called as a function.
            with self:
                return OURS[func._opname]._init_fn(*args, **kwargs)
        self.flops += flops_of(func._opname, args)
        return func(*args, **kwargs)


def flops_of(name: str, args: Any) -> int:
    """Of one call of PyTorch; 0 for what multiplies no matrices."""
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    if name in ("addmm", "baddbmm"):
        tensors = tensors[1:]
    elif name not in ("mm", "bmm", "_scaled_dot_product_flash_attention_for_cpu"):
        return 0
    left, right = tensors[:2]
    if name.startswith("_scaled"):  # queries by keys, and the weights by the values
        return 4 * left.numel() * right.shape[-2]
    return 2 * left.numel() * right.shape[-1]
