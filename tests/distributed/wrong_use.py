"""Jobs that do what must not be done; each answers with what it was told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jobs import Batch, make_bank
from pool import new_group

from pixcontrast import MemoryBank, PixelContrastLoss

DTYPE = torch.float64
FOUR = {"pixel_slots": 4, "region_slots": 4}


def told(call: Callable[[], Any]) -> tuple[str, str]:
    """The kind of error that a call ends in, and its words; empty where it ends well."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def _update(bank: MemoryBank, rank: int) -> None:
    emb, labels, _ = Batch(0, DTYPE).share([2, 1, 1, 2], rank)
    bank.update(emb, labels)


def different_calls(group: Any, rank: int, *, sharded: bool) -> dict[str, Any]:
    """Rank 0 updates a bank while the others ask for a loss; then all of them do update it."""
    bank = make_bank(group, DTYPE, pixel_slots=20, region_slots=20, sharded=sharded)
    loss = PixelContrastLoss(bank=bank, gather=True, process_group=group)
    emb, labels, _ = Batch(0, DTYPE).share([2, 1, 1, 2], rank)
    error = told((lambda: _update(bank, rank)) if rank == 0 else (lambda: loss(emb, labels)))
    untouched = not bool(bank.region_count.any())
    return {"told": error, "untouched": untouched, "after": told(lambda: _update(bank, rank))}


def not_alike(group: Any, rank: int, what: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """A bank or a loss that differs on rank 1, and then one that is the same on both."""
    emb, labels, _ = Batch(0, DTYPE).share([4, 2], rank)
    emb.requires_grad_()
    other = emb
    if rank == 1 and what == "dtype":
        other = emb.float()
    elif rank == 1 and what == "dim":
        other = emb[:, :4]
    elif rank == 1 and what == "gradient":
        other = emb.detach()
    slots = 20 + rank if what == "slots" else 20
    bank = make_bank(group, DTYPE, pixel_slots=slots, region_slots=20)
    temperature = 0.1 + rank if what == "temperature" else 0.1
    loss = PixelContrastLoss(temperature=temperature, gather=True, process_group=group)
    error = told(lambda: bank.update(emb, labels) if what == "slots" else loss(other, labels))
    alike = PixelContrastLoss(gather=True, process_group=group)
    return error, told(lambda: alike(emb, labels).backward())


def a_group_of_others(group: Any, rank: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """A bank and a loss of ranks 0 and 1, asked for by all four."""
    part = new_group([0, 1])
    return (
        told(lambda: MemoryBank(3, 8, process_group=part)),
        told(lambda: PixelContrastLoss(process_group=part)),
    )


def a_bank_from_elsewhere(group: Any, rank: int, bank: MemoryBank) -> dict[str, Any]:
    """A bank that other ranks have built, used by all four but the one that it is right for."""
    if bank.shard.tolist() == [rank, 4]:
        return {}
    loss = PixelContrastLoss(bank=bank)
    emb, labels, _ = Batch(0, DTYPE).share([2, 1, 1, 2], rank)
    return {
        "update": told(lambda: _update(bank, rank)),
        "loss": told(lambda: loss(emb, labels)),
        "eval": told(lambda: loss.eval()(emb, labels)),
    }


def sharded_bank(group: Any, rank: int) -> MemoryBank:
    return make_bank(group, DTYPE, **FOUR, sharded=True)


def loads(group: Any, rank: int, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint loaded into the shards of a bank that has something in it."""
    bank = make_bank(group, DTYPE, **FOUR, sharded=True)
    _update(bank, rank)
    before = copy.deepcopy(bank.state_dict())
    error = told(lambda: bank.load_state_dict(state))
    return {"told": error, "before": before, "after": bank.state_dict()}


def two_groups(group: Any, rank: int) -> tuple[str, str]:
    """A sharded bank of all ranks in a loss that gathers over two of them."""
    parts = [new_group(ranks) for ranks in ([0, 1], [2, 3])]
    bank = make_bank(group, DTYPE, **FOUR, sharded=True)
    loss = PixelContrastLoss(bank=bank, gather=True, process_group=parts[rank // 2])
    emb, labels, _ = Batch(0, DTYPE).share([2, 1, 1, 2], rank)
    return told(lambda: loss(emb, labels))
