"""What several ranks tell each other: messages of `torch.distributed`, of shapes known beforehand.

No shape of a message depends on a value on a device, so that nothing waits for one. What does
differ between ranks, the sizes of their batches, the hosts tell each other first (`agree`): a few
integers, from host to host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary
from zlib import crc32

import torch
from torch import Tensor, distributed

# A view of bytes as numbers has to start at a multiple of their size.
_ALIGNMENT = 8
# All of what hosts tell each other has one size, so that calls that differ are told apart.
_MOST_NUMBERS = 3

_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class GroupReference:
    """A process group as a Module holds it: copies of the Module share it, files do not keep it.

    What is loaded from a file works with the whole world, as DistributedDataParallel does.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupReference:
        return self

    def __reduce__(self) -> tuple[type[GroupReference], tuple[()]]:
        return GroupReference, ()


@dataclass(frozen=True)
class Ranks:
    """The ranks that work together, and which one of them this is.

    Attributes:
        group: their process group.
        rank: this one's number in it.
        size: W, how many they are, at least 2.
    """

    group: Any
    rank: int
    size: int

    @property
    def name(self) -> str:
        """What an operator of PyTorch is given in place of the group."""
        return str(self.group.group_name)


def ranks_of(process_group: Any) -> Ranks | None:
    """The ranks of a process group, None for the world; None where this process works alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    group = distributed.group.WORLD if process_group is None else process_group
    rank, size = distributed.get_rank(group), distributed.get_world_size(group)
    return Ranks(group, rank, size) if size > 1 else None


def ranks_named(name: str) -> Ranks:
    """The ranks whose `Ranks.name` this is."""
    resolve: Any = torch._C._distributed_c10d._resolve_process_group
    group = resolve(name)
    return Ranks(group, group.rank(), group.size())


def agree(ranks: Ranks, what: str, numbers: Sequence[int]) -> list[tuple[int, ...]]:
    """What each rank says, at most three integers of its host, in rank order; the hosts wait.

    `what` names the call, which has to be the same on every rank.
    """
    missing = [0] * (_MOST_NUMBERS - len(numbers))
    told = torch.tensor([crc32(what.encode()), *numbers, *missing])
    answers = torch.zeros(ranks.size * len(told), dtype=torch.int64)
    _all_gather(answers, told, _host_group(ranks))
    said = answers.view(ranks.size, -1).tolist()
    if any(code != said[0][0] for code, *_ in said):
        raise RuntimeError(
            f"{what}: expected every rank of the process group to make the same call; got ranks "
            f"that are in different ones (call the loss, or update the bank, on every rank)"
        )
    return [tuple(rest[: len(numbers)]) for _, *rest in said]


def gather(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """(W, *shape) of each tensor, every rank's in rank order: one message, everywhere the same.

    The tensors have the same shapes and dtypes on all ranks, and lie on one device.
    """
    packed = _pack(tensors, 0)
    received = packed.new_empty(ranks.size * packed.numel())
    _on_wire(_all_gather, received, packed.flatten(), ranks)
    return _unpack(received.view(ranks.size, -1), tensors, 0)


def exchange(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """(W, …) tensors, whose part q goes to rank q; back come the parts that all had for us."""
    packed = _pack(tensors, 1)
    received = torch.empty_like(packed)
    _on_wire(_all_to_all, received.flatten(), packed.flatten(), ranks)
    return _unpack(received, tensors, 1)


def add_up(ranks: Ranks, integers: Tensor) -> Tensor:
    """The sum over ranks of a tensor of integers, which add up to the same in any order."""
    total = torch.empty_like(integers)
    _on_wire(_add_up, total, integers, ranks)
    return total


def gather_with_gradient(ranks: Ranks, vectors: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """As `gather`; the gradient of `vectors` is summed over what all ranks have to say of it."""
    gathered: tuple[Tensor, ...] = _Gathered.apply(vectors, ranks, *others)  # type: ignore[no-untyped-call]
    return gathered


class _Gathered(torch.autograd.Function):
    """Every rank's vectors; backward, a rank's own gradient comes home, added in rank order."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, ranks: Ranks, *others: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        gathered, *rest = gather(ranks, [vectors, *others])
        ctx.mark_non_differentiable(*rest)
        return gathered, *rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        (parts,) = exchange(ctx.ranks, [upstream])
        return _sum_in_order(parts), None, *(None for _ in _)


def _sum_in_order(parts: Tensor) -> Tensor:
    """The sum over the first dimension, added in its order, in float32 at the least."""
    total = parts[0].to(torch.promote_types(parts.dtype, torch.float32), copy=True)
    for part in parts[1:]:
        total += part
    return total.to(parts.dtype)


def pad(tensor: Tensor, length: int, value: float | int = 0, *, dim: int = 0) -> Tensor:
    """The tensor, one dimension made as long as that, which is no less than it is."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    shape = (*tensor.shape[:dim], missing, *tensor.shape[dim + 1 :])
    return torch.cat([tensor, tensor.new_full(shape, value)], dim=dim)


def _pack(tensors: Sequence[Tensor], batched: int) -> Tensor:
    """(W, bytes), or (bytes,) where the first `batched` = 0 dimensions are the ranks'.

    What has the largest elements stands first, so that each tensor starts at a multiple of their
    size.
    """
    parts = []
    for number in _in_packed_order(tensors):
        tensor = tensors[number].detach().contiguous()
        parts.append(tensor.flatten(batched).view(torch.uint8))
    packed = torch.cat(parts, dim=-1)
    return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % _ALIGNMENT))


def _unpack(packed: Tensor, like: Sequence[Tensor], batched: int) -> list[Tensor]:
    """(W, *shape) tensors out of (W, bytes), as `_pack` put them together."""
    found: list[Tensor | None] = [None] * len(like)
    start = 0
    for number in _in_packed_order(like):
        shape, dtype = like[number].shape[batched:], like[number].dtype
        stop = start + shape.numel() * dtype.itemsize
        # Flat: the strides of rows without an element fit no dtype but that of bytes.
        part = packed[:, start:stop].flatten().view(dtype)
        found[number] = part.view(packed.shape[0], *shape)
        start = stop
    return [tensor for tensor in found if tensor is not None]


def _in_packed_order(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda number: -tensors[number].dtype.itemsize)


def _all_gather(output: Tensor, given: Tensor, group: Any) -> None:
    # Newer versions of PyTorch call it by another name, and warn of the old one.
    newer: Any = getattr(distributed, "all_gather_single", None)
    (newer or distributed.all_gather_into_tensor)(output, given, group=group)


def _all_to_all(output: Tensor, given: Tensor, group: Any) -> None:
    distributed.all_to_all_single(output, given, group=group)


def _add_up(output: Tensor, given: Tensor, group: Any) -> None:
    output.copy_(given)
    distributed.all_reduce(output, group=group)


def _on_wire(collective: Any, output: Tensor, given: Tensor, ranks: Ranks) -> None:
    """Run a collective where the backend has it: gloo's lie on the host, a wait on a GPU."""
    if not _lies_on_host(given, ranks):
        collective(output, given, ranks.group)
        return
    on_host = torch.empty(output.shape, dtype=output.dtype)
    collective(on_host, given.cpu(), ranks.group)
    output.copy_(on_host)


def _lies_on_host(given: Tensor, ranks: Ranks) -> bool:
    """Whether a tensor of a device is carried by a backend that knows those of the host alone."""
    return given.device.type != "cpu" and _backend_of(ranks.group, given.device.type) == "gloo"


def _host_group(ranks: Ranks) -> Any:
    """The group itself where it carries tensors of the host, else one of gloo beside it."""
    if _backend_of(ranks.group, "cpu") is not None:
        return ranks.group
    if ranks.group not in _host_groups:
        _host_groups[ranks.group] = _gloo_beside(ranks)
    return _host_groups[ranks.group]


def _gloo_beside(ranks: Ranks) -> Any:
    """Gloo for the same ranks, under the same time limit.

    `distributed.new_group` wants every rank of the world to call it, or at least that all of these
    have made as many groups before. The name of their group is what they surely share.
    """
    c10d: Any = distributed.distributed_c10d
    store = c10d.PrefixStore(f"pixcontrast/{ranks.name}", c10d._get_default_store())
    (device, *_) = distributed.get_backend_config(ranks.group).split(":")
    limit = ranks.group._get_backend(torch.device(device)).options._timeout
    group: Any = distributed.ProcessGroup(store, ranks.rank, ranks.size)
    gloo = c10d.ProcessGroupGloo(store, ranks.rank, ranks.size, limit)
    group._register_backend(torch.device("cpu"), distributed.ProcessGroup.BackendType.GLOO, gloo)
    return group


def _backend_of(group: Any, device: str) -> str | None:
    """Which backend carries a device's tensors: of `"cpu:gloo,cuda:nccl"`, the device's."""
    pairs = (pair.split(":") for pair in distributed.get_backend_config(group).split(","))
    return dict(pairs).get(device)
