"""Communication between ranks: collectives of `torch.distributed` for several tensors at once.

The shape of a message never depends on a value on a device, so no collective makes the host wait
for a device. The hosts exchange the sizes that differ between ranks beforehand (`agree`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from torch import Tensor, distributed

from pixcontrast._check import kind_of, refuse
from pixcontrast._tensors import at_least_float32

# Bytes can be viewed as another dtype only from a multiple of its element size.
_ALIGNMENT = 8
# Every message of `agree` has the same size, so that ranks in different calls can be detected.
_MAX_INTEGERS = 3

_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class GroupReference:
    """Reference from a Module to a process group: copies share the group, pickles drop it.

    A Module that is loaded from a file uses the whole world, as DistributedDataParallel does.
    """

    def __init__(self, group: Any = None) -> None:
        if group is not None:
            _check_process_group(group)
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupReference:
        return self

    def __reduce__(self) -> tuple[type[GroupReference], tuple[()]]:
        return GroupReference, ()


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group: this process is `rank` of `size` (W, at least 2)."""

    group: Any
    rank: int
    size: int

    @property
    def name(self) -> str:
        """The name of the group, which a custom operator can take as an argument."""
        return str(self.group.group_name)


def _check_process_group(group: object) -> None:
    available = distributed.is_available()
    # torch.distributed.new_group returns an integer to processes outside the group.
    if available and isinstance(group, int) and group == distributed.GroupMember.NON_GROUP_MEMBER:
        expected, got = "a group that this process is part of", "a group that it is not part of"
        refuse("process_group", expected, got, "pass each rank the group that it belongs to")
    if not (available and isinstance(group, distributed.ProcessGroup)):
        expected = "a process group of torch.distributed, or None for the whole world"
        refuse("process_group", expected, kind_of(group), error=TypeError)


def ranks_of(process_group: Any) -> Ranks | None:
    """Return the ranks of a group (None: the whole world), or None if this process is alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = distributed.group.WORLD if process_group is None else process_group
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    return Ranks(group, rank, size) if size > 1 else None


def ranks_named(name: str) -> Ranks:
    """Return the ranks of the process group with this `Ranks.name`."""
    resolve: Any = torch._C._distributed_c10d._resolve_process_group
    group = resolve(name)
    return Ranks(group, group.rank(), group.size())


def agree(ranks: Ranks, call: str, integers: Sequence[int]) -> list[tuple[int, ...]]:
    """Exchange at most 3 integers between the hosts, which wait for each other.

    Returns the integers of every rank, in rank order. `call` describes the call: a RuntimeError is
    raised if the ranks pass different descriptions.
    """
    padding = [0] * (_MAX_INTEGERS - len(integers))
    sent = torch.tensor([crc32(call.encode()), *integers, *padding], device="cpu")
    received = torch.zeros(ranks.size * len(sent), dtype=torch.int64, device="cpu")
    _all_gather(received, sent, _host_group(ranks))
    rows = received.view(ranks.size, -1).tolist()
    if any(code != rows[0][0] for code, *_ in rows):
        raise RuntimeError(
            f"{call}: expected every rank of the process group to make the same call; got ranks "
            f"that are in different ones (call the loss, or update the bank, on every rank)"
        )
    return [tuple(row[: len(integers)]) for _, *row in rows]


def gather(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """All-gather tensors of one device in one message: (*shape) each becomes (W, *shape).

    Shapes and dtypes are the same on every rank, and so is the result.
    """
    packed = _pack(tensors, 0)
    received = packed.new_empty(ranks.size * packed.numel())
    _on_wire(_all_gather, received, packed.flatten(), ranks)
    return _unpack(received.view(ranks.size, -1), tensors, 0)


def exchange(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """All-to-all of several tensors of shape (W, *shape) in one message.

    Slice q of each tensor is sent to rank q. Slice q of a result is what rank q sent to this rank.
    """
    packed = _pack(tensors, 1)
    received = torch.empty_like(packed)
    _on_wire(distributed.all_to_all_single, received.flatten(), packed.flatten(), ranks)
    return _unpack(received, tensors, 1)


def add_up(ranks: Ranks, integers: Tensor) -> Tensor:
    """Sum an integer tensor over the ranks. Integer sums do not depend on the order."""
    total = torch.empty_like(integers)
    _on_wire(_all_reduce, total, integers, ranks)
    return total


def gather_with_gradient(ranks: Ranks, vectors: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All-gather tensors; the gradient of `vectors` is the sum of the gradients of all ranks."""
    gathered: tuple[Tensor, ...] = _Gather.apply(vectors, ranks, *others)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather. In the backward, each rank sums the gradients of its vectors in rank order."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, ranks: Ranks, *others: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        gathered, *rest = gather(ranks, [vectors, *others])
        ctx.mark_non_differentiable(*rest)
        return gathered, *rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (gradients,) = exchange(ctx.ranks, [grad_output])
        total = gradients[0].to(at_least_float32(gradients), copy=True)
        for gradient in gradients[1:]:
            total += gradient
        return total.to(gradients.dtype), None, *(None for _ in _)


def pad(tensor: Tensor, length: int, value: float | int = 0, *, dim: int = 0) -> Tensor:
    """Append `value` along a dimension until it has `length` elements."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = (*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :])
    return torch.cat([tensor, tensor.new_full(shape, value)], dim=dim)


def _pack(tensors: Sequence[Tensor], num_rank_dims: int) -> Tensor:
    """Concatenate tensors as bytes: (bytes,), or (W, bytes) if `num_rank_dims` is 1."""
    ordered = (tensors[index].detach().contiguous() for index in _packing_order(tensors))
    rows = [tensor.flatten(num_rank_dims).view(torch.uint8) for tensor in ordered]
    packed = torch.cat(rows, dim=-1)
    return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % _ALIGNMENT))


def _unpack(packed: Tensor, like: Sequence[Tensor], num_rank_dims: int) -> list[Tensor]:
    """Split (W, bytes) into (W, *shape) tensors; the inverse of `_pack`."""
    found: dict[int, Tensor] = {}
    start = 0
    for index in _packing_order(like):
        shape, dtype = like[index].shape[num_rank_dims:], like[index].dtype
        stop = start + shape.numel() * dtype.itemsize
        # Flatten first: the strides of empty rows are not divisible by the element size.
        values = packed[:, start:stop].flatten().view(dtype)
        found[index] = values.view(packed.shape[0], *shape)
        start = stop
    return [found[index] for index in range(len(like))]


def _packing_order(tensors: Sequence[Tensor]) -> list[int]:
    """Order tensors by descending element size, so that each one is aligned."""
    return sorted(range(len(tensors)), key=lambda index: -tensors[index].dtype.itemsize)


def _all_gather(output: Tensor, sent: Tensor, group: Any) -> None:
    # Newer versions of PyTorch deprecate the old name.
    newer: Any = getattr(distributed, "all_gather_single", None)
    (newer or distributed.all_gather_into_tensor)(output, sent, group=group)


def _all_reduce(output: Tensor, sent: Tensor, group: Any) -> None:
    output.copy_(sent)
    distributed.all_reduce(output, group=group)


def _on_wire(collective: Any, output: Tensor, sent: Tensor, ranks: Ranks) -> None:
    """Run a collective. With gloo, tensors of other devices are copied through the host.

    Such a copy makes the host wait for the device.
    """
    if sent.device.type == "cpu" or _backend_of(ranks.group, sent.device.type) != "gloo":
        collective(output, sent, group=ranks.group)
        return
    on_host = torch.empty(output.shape, dtype=output.dtype, device="cpu")
    collective(on_host, sent.cpu(), group=ranks.group)
    output.copy_(on_host)


def _host_group(ranks: Ranks) -> Any:
    """Return the group if it supports CPU tensors, else a gloo group of the same ranks."""
    if _backend_of(ranks.group, "cpu") is not None:
        return ranks.group
    if ranks.group not in _host_groups:
        _host_groups[ranks.group] = _new_gloo_group(ranks)
    return _host_groups[ranks.group]


def _new_gloo_group(ranks: Ranks) -> Any:
    """Create a gloo group of the same ranks, with the same timeout.

    `distributed.new_group` is not used: it must be called by every rank of the world, or these
    ranks must have created the same number of groups before. The prefix of the store is the group
    name, which is the same on all of these ranks.
    """
    c10d: Any = distributed.distributed_c10d
    store = c10d.PrefixStore(f"pixcontrast/{ranks.name}", c10d._get_default_store())
    (device, *_) = distributed.get_backend_config(ranks.group).split(":")
    timeout = ranks.group._get_backend(torch.device(device)).options._timeout
    group: Any = distributed.ProcessGroup(store, ranks.rank, ranks.size)
    gloo = c10d.ProcessGroupGloo(store, ranks.rank, ranks.size, timeout)
    group._register_backend(torch.device("cpu"), distributed.ProcessGroup.BackendType.GLOO, gloo)
    return group


def _backend_of(group: Any, device: str) -> str | None:
    """Return the backend for tensors of a device type, or None if the group does not support it."""
    pairs = (pair.split(":") for pair in distributed.get_backend_config(group).split(","))
    return dict(pairs).get(device)
