"""Jobs that train a projection head that only the loss calls, in each way that averages it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jobs import EVERY_PIXEL, Batch, make_bank, make_head
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from training import DIM, Trunk

from pixcontrast import PixelContrastLoss

DTYPE = torch.float64
SLOTS = 120


class Network(nn.Module):
    """A trunk, and a head that `forward` does not call."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.trunk = Trunk(DTYPE)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)


class WithLoss(nn.Module):
    """A network that computes its loss in `forward`."""

    def __init__(self, network: Network, loss: PixelContrastLoss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.network(images), labels)


class SumOverRanks(torch.autograd.Function):
    """Sum over the ranks; so is the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return SumOverRanks.forward(ctx, gradient, ctx.group), None


class NormOfAllRanks(nn.Module):
    """Batch normalization over the rows of all ranks, as SyncBatchNorm, which needs a GPU."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.group = group
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, DIM, dtype=DTYPE))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, DIM, dtype=DTYPE))

    def forward(self, rows: Tensor) -> Tensor:
        count = rows.new_full((1,), len(rows))
        sums = torch.cat([rows.sum(dim=0), rows.square().sum(dim=0), count])
        if distributed.is_initialized():
            sums = SumOverRanks.apply(sums, self.group)
        mean, square = sums[:DIM] / sums[-1], sums[DIM:-1] / sums[-1]
        return (rows - mean) * (square - mean.square() + 1e-5).rsqrt() * self.weight + self.bias


class Training:
    """A network, a loss and a way to average the gradients of both.

    `way` is `"alone"` (averaged here), `"shared"` (the head belongs to the network that DDP wraps),
    `"wrapped"` (DDP wraps the loss too) or `"inside"` (DDP wraps network and loss as one).
    """

    def __init__(
        self,
        group: Any,
        way: str,
        head: nn.Module,
        *,
        find_unused: bool = False,
        static_graph: bool = False,
        **options: Any,
    ) -> None:
        self.group = group
        self.network = Network(head)
        self.loss = PixelContrastLoss(
            **{"projection": head, "anchor_sampler": EVERY_PIXEL, "process_group": group, **options}
        )
        self.alone = way == "alone"
        self.wrapped: list[nn.Module] = []

        def wrap(module: nn.Module) -> nn.Module:
            self.wrapped.append(
                DistributedDataParallel(
                    module,
                    process_group=group,
                    find_unused_parameters=find_unused,
                    static_graph=static_graph,
                )
            )
            return self.wrapped[-1]

        loss: nn.Module = self.loss
        network: nn.Module = self.network
        self.call: Callable[[Tensor, Tensor], Tensor]
        if way == "inside":
            self.call = wrap(WithLoss(self.network, self.loss))
            return
        if way == "shared":
            network = wrap(network)
        elif way == "wrapped":
            network, loss = wrap(self.network.trunk), wrap(loss)
        self.call = lambda images, labels: loss(network(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss. Gradients become means over the ranks, buffers those of rank 0."""
        alone = self.alone and distributed.is_initialized()
        if alone:
            for buffer in self.network.buffers():
                distributed.broadcast(buffer, 0, group=self.group)
        value = self.call(images, labels)
        self.network.zero_grad()
        value.backward()
        if alone:
            for parameter in self.network.parameters():
                parameter.grad /= distributed.get_world_size(self.group)
                distributed.all_reduce(parameter.grad, group=self.group)
        return value.detach()

    def gradients(self) -> list[Tensor]:
        return [parameter.grad.clone() for parameter in self.network.parameters()]


def train(
    group: Any,
    rank: int,
    sizes: list[int] | list[list[int]],
    way: str,
    *,
    bank: dict[str, Any] | None = None,
    norm: str | None = None,
    steps: int = 3,
    all_valid: bool = False,
    learning_rate: float = 0.1,
    **options: Any,
) -> dict[str, Any]:
    """Losses and gradients of some steps of SGD, and the state after them.

    `sizes` are the images of each rank, in every step or a list for each step.
    """
    head = make_head(DTYPE, "batch" if norm == "batch" else None)
    if norm == "all ranks":
        head.layers[1] = NormOfAllRanks(group)
    memory = None if bank is None else make_bank(group, DTYPE, **bank)
    training = Training(group, way, head, bank=memory, **options)
    optimizer = torch.optim.SGD(training.network.parameters(), learning_rate)
    losses, gradients = [], []
    for step in range(steps):
        of_ranks = sizes if isinstance(sizes[0], int) else sizes[step]
        images, labels, _ = Batch(step, DTYPE).share(of_ranks, rank)
        if all_valid:
            labels = (labels % 4).clamp(max=3)
        losses.append(training.step(images, labels))
        gradients += training.gradients()
        optimizer.step()
    return {
        "losses": losses,
        "gradients": gradients,
        "parameters": [parameter.detach() for parameter in training.network.parameters()],
        "buffers": dict(training.network.named_buffers()),
        "bank": {} if memory is None else memory.state_dict(),
        "stats": training.loss.stats is not None,
    }


def unused_parameters(group: Any, rank: int, way: str, **options: Any) -> str:
    """What DDP says to a head that its module's `forward` does not call."""
    training = Training(group, way, make_head(DTYPE), gather=True, **options)
    images, labels, _ = Batch(0, DTYPE).share([4, 2], rank)
    try:
        training.step(images, labels)
    except RuntimeError as error:
        return str(error)
    return ""


def train_fully_sharded(
    group: Any, rank: int, sizes: list[int], *, head_of_its_own: bool
) -> dict[str, Any]:
    """Losses and gradients of a shared head in a network that FSDP2 shards."""
    training = Training(group, "alone", make_head(DTYPE), gather=True)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    if head_of_its_own:
        fully_shard(training.network.head, mesh=mesh)
    fully_shard(training.network, mesh=mesh)
    losses, gradients = [], []
    for step in range(2):
        images, labels, _ = Batch(step, DTYPE).share(sizes, rank)
        training.network.zero_grad()
        value = training.call(images, labels)
        value.backward()
        losses.append(value.detach())
        gradients += [parameter.grad.full_tensor() for parameter in training.network.parameters()]
    return {"losses": losses, "gradients": gradients, "parameters": []}


def join(
    group: Any, rank: int, batches: list[int], way: str, *, bank: bool, throw: bool = False
) -> dict[str, Any]:
    """Steps on an uneven number of batches, inside DDP's `Join`."""
    options: dict[str, Any] = {}
    if bank:
        memory = make_bank(group, DTYPE, pixel_slots=24, region_slots=12, sharded=True)
        options = {"bank": memory, "gather": True}
    training = Training(group, way, make_head(DTYPE), **options)
    optimizer = torch.optim.SGD(training.network.parameters(), 0.1)
    losses, gradients, told = [], [], ""
    try:
        with Join(training.wrapped, throw_on_early_termination=throw):
            for step in range(batches[rank]):
                images, labels, _ = Batch(step, DTYPE).share([3, 3], rank)
                losses.append(training.step(images, labels))
                gradients.append(training.gradients())
                optimizer.step()
    except RuntimeError as error:
        told = str(error)
    parameters = [parameter.detach() for parameter in training.network.parameters()]
    return {"losses": losses, "gradients": gradients, "told": told, "parameters": parameters}


def join_in_a_process(rank: int, folder: Path, way: str, bank: bool) -> str:
    """What a rank of its own process sees in a `Join` that cannot work; it may also be killed."""
    return join(None, rank, [3, 1], way, bank=bank)["told"]
