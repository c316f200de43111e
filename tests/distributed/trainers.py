"""Jobs that train by other means: FSDP2, a scaled loss, an average of the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from jobs import Batch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import AveragedModel
from training import Trainer, Trunk, Whole, every_pixel, shares, two_banks
from wrong_use import told


def _fully_sharded(group: Any, sizes: list[int], *, sharded: bool) -> Whole:
    """The network of `train_every_pixel`, its parameters and its bank spread over the ranks."""
    dtype = torch.float64
    whole = Whole(Trunk(dtype), every_pixel(group, dtype, sharded=sharded, size=len(sizes)))
    mesh = DeviceMesh.from_group(group or distributed.group.WORLD, "cpu")
    fully_shard(whole.trunk, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    return whole


def _whole_tensors(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.detach().full_tensor() for parameter in parameters]


def fully_shard_every_pixel(
    group: Any, rank: int, sizes: list[int], *, sharded: bool
) -> dict[str, Any]:
    """As `train_every_pixel`, under FSDP2; and whether its state dict goes round."""
    model = _fully_sharded(group, sizes, sharded=sharded)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses, gradients = [], []
    for images, labels, seed in shares(sizes, rank, torch.float64, 0, 2):
        optimizer.zero_grad()
        loss = model(images, labels, seed)
        loss.backward()
        gradients.append(_whole_tensors([p.grad for p in model.parameters()]))
        optimizer.step()
        losses.append(loss.detach())

    state = get_model_state_dict(model)
    on_host = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    other = _fully_sharded(group, sizes, sharded=sharded)
    set_model_state_dict(other, state)
    prefix = "losses.0.bank."
    return {
        "losses": losses,
        "gradients": gradients,
        "banks": model.losses.banks(),
        "saved": {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
        "names on the host": list(on_host),  # of rank 0 alone
        "parameters": _whole_tensors(list(model.parameters())),
        "loaded": other.losses.banks(),
        "loaded parameters": _whole_tensors(list(other.parameters())),
    }


def checkpoint_of_all_ranks(group: Any, rank: int, folder: Path) -> dict[str, Any]:
    """A checkpoint that all ranks write together, with each shard under a name of its own.

    And what comes of one without, in which tensors of one name are taken to be the same: each is
    some rank's.
    """
    sizes = [2, 1, 1, 2]
    dtype = torch.float64

    def trained(first: int) -> Whole:
        model = Whole(Trunk(dtype), two_banks(group, dtype, size=len(sizes)))
        for batch in shares(sizes, rank, dtype, first, first + 2):
            model(*batch)
        return model

    def state(model: Whole) -> dict[str, Any]:
        whole, sharded = (loss.bank for loss in model.losses)
        return {
            "trunk": get_model_state_dict(model.trunk),
            "bank": whole.state_dict(),
            f"shard {rank}": sharded.state_dict(),
        }

    model, other = trained(0), trained(2)
    before, saved = other.losses.banks(), model.losses.banks()
    checkpoint.save(state(model), checkpoint_id=folder / "named", process_group=group)
    loaded = state(other)  # tensors of `other`, which are loaded into where they stand
    checkpoint.load(loaded, checkpoint_id=folder / "named", process_group=group)
    other.losses[0].bank.load_state_dict(loaded["bank"])
    other.losses[1].bank.load_state_dict(loaded[f"shard {rank}"])

    model_state = get_model_state_dict(model)
    checkpoint.save(model_state, checkpoint_id=folder / "plain", process_group=group)
    checkpoint.load(model_state, checkpoint_id=folder / "plain", process_group=group)
    return {
        "before": before,
        "saved": saved,
        "loaded": other.losses.banks(),
        "told": told(lambda: set_model_state_dict(model, model_state)),
    }


def scaled_steps(
    group: Any, rank: int, sizes: list[int], dtype: torch.dtype, cause: str
) -> list[dict[str, Any]]:
    """Four steps under a GradScaler, of which the second overflows, and what there is after each.

    `cause` is `"scale"`, one too large for float16, or `"images"`, infinite ones of rank 1.
    """
    losses = two_banks(group, torch.float32, size=len(sizes))
    trainer = Trainer(group, Trunk(torch.float32), losses, "inside")
    optimizer = torch.optim.SGD(trainer.trunk.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    after = []
    for step, (images, labels, seed) in enumerate(shares(sizes, rank, torch.float32, 0, 4)):
        if step == 1 and cause == "scale":
            scaler.update(2.0**127)
        if step == 1 and cause == "images" and rank == 1:
            images = images * 3e38
        if step == 2:
            scaler.update(2.0**10)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = trainer.loss(images, labels, seed)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        after.append(
            {
                "parameters": trainer.parameters(),
                "scale": scaler.get_scale(),
                "banks": losses.banks(),
            }
        )
    return after


def averaged(group: Any, rank: int, sizes: list[int], *, use_buffers: bool) -> dict[str, Any]:
    """Steps of a model and of its average; the banks of both before and after the average moves."""
    losses = two_banks(group, torch.float64, size=len(sizes))
    trainer = Trainer(group, Trunk(torch.float64, norm=True), losses, "inside")
    model = trainer.wrapped.module
    steps = shares(sizes, rank, torch.float64, 0, 3)

    def step() -> None:
        images, labels, seed = next(steps)
        trainer.backward(trainer.loss(images, labels, seed))

    step()
    average = AveragedModel(model, use_buffers=use_buffers)
    copied = average.module.losses.banks()
    for _ in range(2):
        step()
        before = losses.banks()
        average.update_parameters(model)
    # As averages do that go over the state of a model, whatever is in it.
    of_state = copy.deepcopy(model)
    for mean, new in zip(of_state.state_dict().values(), model.state_dict().values(), strict=True):
        mean.copy_(0.5 * mean + 0.25 * new)

    images, labels, _ = Batch(9, torch.float64).share(sizes, rank)
    average.eval()
    value = average(images, labels, 0)
    return {
        "copied": copied,
        "before": before,
        "after": losses.banks(),
        "of the average": average.module.losses.banks(),
        "norm": [model.trunk[1].running_mean, average.module.trunk[1].running_mean],
        "group": average.module.losses[0].bank.process_group is group,
        "value": value.detach(),
    }


def in_eval_mode(
    group: Any, rank: int, sizes: list[int], sharded: bool, place: str
) -> dict[str, Any]:
    """The loss of a batch in eval mode, with and without grad mode, and the bank before and after.

    The bank has a batch by then.
    """
    losses = every_pixel(group, torch.float64, sharded=sharded, size=len(sizes))
    trainer = Trainer(group, Trunk(torch.float64), losses, place)
    (first, second) = shares(sizes, rank, torch.float64, 0, 2)
    trainer.loss(*first)
    before = losses.banks()
    with torch.no_grad():
        in_training = trainer.loss(*second)
    nn.ModuleList([trainer.wrapped, losses]).eval()
    values = [in_training, trainer.loss(*second).detach()]
    with torch.no_grad():
        values.append(trainer.loss(*second))
    return {"losses": values, "before": before, "after": losses.banks()}
