"""What would make a training step wait for its device, refused where it happens on a CPU."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pixcontrast._info_nce.operators import entries_gradient_operator, losses_operator

aten = torch.ops.aten
# A value that the host reads, a shape that depends on values, a tensor made of the host's numbers.
# Inside of an operator those that are made of others are seen under their own names.
REFUSED = {
    aten._local_scalar_dense,
    aten.item,
    aten.allclose,
    aten.argwhere,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.nonzero_numpy,
    aten.masked_select,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
    aten.repeat_interleave,
    aten.bincount,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.lift,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
TO_THE_HOST = {
    torch.Tensor.cpu,
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.tensor,
    torch.as_tensor,
    torch.Tensor.new_tensor,
}
OURS = {
    torch.ops.pixcontrast.losses: losses_operator,
    torch.ops.pixcontrast.entries_gradient: entries_gradient_operator,
}


class WaitError(AssertionError):
    """On a GPU the host would have to wait here."""


class Launches(TorchDispatchMode):
    """Refuses what waits, inside of our operators too; names what was called, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in OURS:
            # What an operator does is hidden from a mode, unless it is called as a function.
            with self:
                return OURS[packet]._init_fn(*args, **kwargs)
        if packet in REFUSED or func is aten.where.default:
            raise WaitError(str(func))
        if packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                raise WaitError(f"{func} by a mask")
        self.names.append(str(func))
        return func(*args, **kwargs)


class HostAsks(TorchFunctionMode):
    """Refuses what brings values to the host, or numbers of the host to a device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in TO_THE_HOST:
            raise WaitError(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))
