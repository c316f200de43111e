"""Jobs that train: a small network with its losses, alone, under DDP and under FSDP2."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jobs import EVERY_PIXEL, Batch, make_bank
from messages import Messages
from pool import new_group
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pixcontrast import HardAnchorSampler, PixelContrastLoss, RegionContrastLoss, _distributed

DIM = 8
SLOTS = 24
"""Of a class in a ring that a few batches fill."""


class Trunk(nn.Sequential):
    """From `Batch.emb`, taken for images, to embeddings; the same on every rank."""

    def __init__(self, dtype: torch.dtype, *, norm: bool = False) -> None:
        generator_state = torch.get_rng_state()
        torch.manual_seed(7)
        middle = nn.BatchNorm2d(DIM) if norm else nn.Identity()
        super().__init__(
            nn.Conv2d(DIM, DIM, 3, padding=1), middle, nn.SiLU(), nn.Conv2d(DIM, DIM, 1)
        )
        torch.set_rng_state(generator_state)
        self.to(dtype)


class Losses(nn.ModuleList):
    """The sum of some losses; each draws as if it were the only one."""

    def forward(self, emb: Tensor, labels: Tensor, seed: int) -> Tensor:
        generators = (torch.Generator().manual_seed(seed) for _ in self)
        values = [
            loss(emb, labels, generator=generator)
            for loss, generator in zip(self, generators, strict=True)
        ]
        return torch.stack(values).sum()

    def banks(self) -> list[dict[str, Tensor]]:
        """Copies of the banks' states."""
        return [copy.deepcopy(loss.bank.state_dict()) for loss in self if loss.bank is not None]


class Whole(nn.Module):
    """A network that ends in its losses."""

    def __init__(self, trunk: Trunk, losses: Losses) -> None:
        super().__init__()
        self.trunk = trunk
        self.losses = losses

    def forward(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        return self.losses(self.trunk(images), labels, seed)


@dataclass
class Trainer:
    """A network, with its losses in the module that DDP wraps or beside it.

    `place` is `"alone"` (no DDP: gradients are averaged here), `"inside"` or `"outside"`.
    """

    group: Any
    trunk: Trunk
    losses: Losses
    place: str

    def __post_init__(self) -> None:
        whole = Whole(self.trunk, self.losses)
        self.wrapped: nn.Module = self.trunk if self.place == "outside" else whole
        if self.place != "alone":
            options = {"process_group": self.group}
            self.wrapped = DistributedDataParallel(self.wrapped, **options)

    def loss(self, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        if self.place == "outside":
            return self.losses(self.wrapped(images), labels, seed)
        return self.wrapped(images, labels, seed)

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        if self.place == "alone" and distributed.is_initialized():
            for parameter in self.trunk.parameters():
                parameter.grad /= distributed.get_world_size(self.group)
                distributed.all_reduce(parameter.grad, group=self.group)

    def no_sync(self) -> AbstractContextManager[None]:
        wrapped = self.wrapped
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def gradients(self) -> list[Tensor]:
        return [parameter.grad.clone() for parameter in self.trunk.parameters()]

    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trunk.parameters()]


def two_banks(group: Any, dtype: torch.dtype, *, size: int) -> Losses:
    """A loss with a bank that every rank holds, and one with the same bank in shards."""
    options = {"gather": True, "process_group": group}
    sampler = HardAnchorSampler(max_anchors=64, max_views=6)
    slots = {"pixel_slots": SLOTS, "region_slots": SLOTS}
    shard = {name: number // size for name, number in slots.items()}
    whole = make_bank(group, dtype, **slots)
    sharded = make_bank(group, dtype, sharded=True, **shard)
    return Losses(
        [
            PixelContrastLoss(bank=whole, anchor_sampler=sampler, **options),
            RegionContrastLoss(bank=sharded, anchor_sampler=sampler, **options),
        ]
    )


def every_pixel(group: Any, dtype: torch.dtype, *, sharded: bool = False, size: int = 1) -> Losses:
    """A loss over all pixels there are, and over a bank that no batch overflows."""
    slots = 240 // size if sharded else 240
    bank = make_bank(group, dtype, pixel_slots=slots, region_slots=slots, sharded=sharded)
    loss = PixelContrastLoss(
        bank=bank, anchor_sampler=EVERY_PIXEL, gather=True, process_group=group
    )
    return Losses([loss])


def shares(
    sizes: list[int], rank: int, dtype: torch.dtype, first: int, stop: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """A rank's images and labels of some batches, and a seed that no other batch or rank has."""
    for step in range(first, stop):
        images, labels, _ = Batch(step, dtype).share(sizes, rank)
        yield images, labels, 100 * step + rank


def train_two_banks(
    group: Any, rank: int, sizes: list[int], place: str, *, steps: int = 4
) -> dict[str, Any]:
    """Some steps of SGD; what DDP broadcasts in one of the later ones, in bytes."""
    dtype = torch.float64
    losses = two_banks(group, dtype, size=len(sizes))
    trainer = Trainer(group, Trunk(dtype, norm=True), losses, place)
    optimizer = torch.optim.SGD(trainer.trunk.parameters(), 0.1)
    values = []
    with Messages() as messages:
        for step, (images, labels, seed) in enumerate(shares(sizes, rank, dtype, 0, steps)):
            if step == 2:  # DDP arranges its buckets at the start of the second
                messages.clear()
            optimizer.zero_grad()
            loss = trainer.loss(images, labels, seed)
            trainer.backward(loss)
            optimizer.step()
            values.append(loss.detach())
    return {
        "losses": values,
        "parameters": trainer.parameters(),
        "banks": losses.banks(),
        "broadcast": messages.bytes_of("broadcast_") / (steps - 2),
        "norm": sum(buffer.nbytes for buffer in trainer.trunk[1].buffers()),
    }


def train_every_pixel(
    group: Any,
    rank: int,
    sizes: list[int],
    place: str,
    *,
    sharded: bool = False,
    micro_batches: int = 1,
    no_sync: bool = False,
    first_batch: int = 0,
) -> dict[str, Any]:
    """Losses and the gradient of two optimizer's steps, of as many micro-batches each."""
    dtype = torch.float64
    losses = every_pixel(group, dtype, sharded=sharded, size=len(sizes))
    trainer = Trainer(group, Trunk(dtype), losses, place)
    optimizer = torch.optim.SGD(trainer.trunk.parameters(), 0.1)
    values, gradients, counts = [], [], []
    for step in range(2):
        optimizer.zero_grad()
        first = first_batch + step * micro_batches
        batches = list(shares(sizes, rank, dtype, first, first + micro_batches))
        for number, (images, labels, seed) in enumerate(batches, start=1):
            wait = no_sync and number < micro_batches
            with trainer.no_sync() if wait else nullcontext():
                loss = trainer.loss(images, labels, seed)
                trainer.backward(loss)
            values.append(loss.detach())
            counts.append(losses[0].bank.region_count.clone())
        gradients.append(trainer.gradients())
        optimizer.step()
    return {"losses": values, "gradients": gradients, "counts": counts, "banks": losses.banks()}


def train_in_groups(
    group: Any, rank: int, groups: list[list[int]], sizes: list[int], *, sharded: bool
) -> dict[str, Any]:
    """Each group a training of its own: DDP, gathering and banks, on batches of its own."""
    parts = [new_group(ranks) for ranks in groups]
    (number,) = (number for number, ranks in enumerate(groups) if rank in ranks)
    return train_every_pixel(
        parts[number],
        groups[number].index(rank),
        sizes,
        "inside",
        sharded=sharded,
        first_batch=10 * number,
    )


def train_beside_gloo(group: Any, rank: int, sizes: list[int]) -> dict[str, Any]:
    """As `train_every_pixel`, in a group that is told not to carry tensors of the host.

    The two ranks have made different numbers of groups before.
    """
    part = new_group([0, 1])
    new_group([0, 2])
    if rank > 1:
        return {}
    carries = _distributed._backend_of
    _distributed._backend_of = lambda of, device: None if device == "cpu" else carries(of, device)
    try:
        answer = train_every_pixel(part, rank, sizes, "inside")
        (beside,) = (
            _distributed._host_groups[key] for key in _distributed._host_groups if key is part
        )
    finally:
        _distributed._backend_of = carries
    limits = [of._get_backend(torch.device("cpu")).options._timeout for of in (part, beside)]
    return {**answer, "limits": limits, "is another": beside is not part}
