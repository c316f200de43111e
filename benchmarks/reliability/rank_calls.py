"""One random call of all ranks together, made of a number alone: same options, own data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.arguments import CLASSES, IGNORE, LOSSES, SAMPLERS
from benchmarks.reliability.calls import spoil
from benchmarks.reliability.values import FLOATS, INTEGERS, Subclass, filled
from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast.mining import Strategy

DIM = 3
EVERYTHING = 10**6
"""A number that a selection never reaches."""


class RankCall(NamedTuple):
    """What one rank calls.

    Attributes:
        target: `"loss"`, `"bank.update"` or `"checkpoint"`.
        kind: the class of the loss.
        options: those of the loss.
        bank: those of the bank, or None.
        fills: what the bank takes in before, as arguments of `bank.update`.
        training: whether the loss is in training mode.
        arguments: those of the call; its generator is made of `seed`.
        seed: what this rank draws with.
        spoiled: which of the options and arguments need not fit: the same on all ranks, as then is
            all data, so that all ranks refuse them or none.
    """

    target: str
    kind: Any
    options: dict[str, Any]
    bank: dict[str, Any] | None
    fills: list[dict[str, Any]]
    training: bool
    arguments: dict[str, Any]
    seed: int
    spoiled: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.target}({', '.join(self.spoiled)})"


def make_rank_call(number: int, rank: int) -> RankCall:
    """What a rank does in the call of a number."""
    shared = Random(number)
    target = shared.choice(("loss", "loss", "loss", "loss", "bank.update", "checkpoint"))
    dtype = shared.choice(FLOATS)
    sharded = shared.random() < 0.5
    bank = _bank_options(shared, sharded) if target != "loss" or shared.random() < 0.7 else None
    num_fills = shared.choice((0, 1, 3))
    kind = shared.choice(LOSSES)
    options = _loss_options(shared, kind, bank)
    training = shared.random() < 0.8
    wants_gradient, weighted = shared.random() < 0.8, shared.random() < 0.3
    places = ["arguments"] + (["options"] if target == "loss" else []) + (["bank"] if bank else [])
    num_spoiled = shared.choice((0, 0, 0, 1, 1, 2))
    chosen = [(shared.choice(places), shared.random()) for _ in range(num_spoiled)]

    own = Random(f"{number} {0 if num_spoiled else rank}")
    fills = [_data(own, shared.choice(FLOATS), False) for _ in range(num_fills)]
    arguments: dict[str, Any] = _data(own, dtype, wants_gradient and target == "loss")
    if target == "loss":
        shape = arguments["labels"].shape
        predicted = torch.randint(0, CLASSES, shape, generator=_generator(own))
        arguments["preds"] = own.choice((None, predicted))
        arguments["weight"] = torch.rand(shape, generator=_generator(own)) if weighted else None
    spoiled = []
    for place, part in chosen:
        where = {"arguments": arguments, "options": options, "bank": bank}[place]
        assert where is not None  # a place is only chosen where it is
        names = sorted(set(where) - {"gather", "anchor_sampler", "process_group"})
        name = names[int(part * len(names))]
        where[name] = spoil(shared, where[name])
        spoiled.append(name)
    seed = Random(f"{number} {rank} seed").getrandbits(32)
    return RankCall(
        target, kind, options, bank, fills, training, arguments, seed, tuple(spoiled)
    )  # fmt: skip


def _generator(random: Random) -> torch.Generator:
    return torch.Generator().manual_seed(random.getrandbits(32))


def _data(random: Random, dtype: torch.dtype, requires_grad: bool) -> dict[str, Any]:
    """An embedding and its labels, of any size, lying in memory in any way."""
    images = random.choice((0, 1, 2, 2, 3))
    spatial = tuple(random.choice((1, 2, 3, 5, 5)) for _ in range(random.choice((0, 1, 2, 2, 3))))
    if not spatial:
        images = random.choice((0, 1, 7, 12))
    factor = random.choice((1, 2)) if spatial else 1
    shape = (images, *(size * factor for size in spatial))
    labels = torch.randint(0, CLASSES, shape, generator=_generator(random))
    kind = random.choice(("any", "any", "any", "any", "absent", "one class"))
    if kind == "one class":
        labels[:] = random.randrange(CLASSES)
    labels[torch.rand(shape, generator=_generator(random)) < 0.15] = IGNORE
    if kind == "absent":
        labels[:] = IGNORE
    integer = random.choice(INTEGERS)
    if integer == torch.int8:
        labels[labels == IGNORE] = -1
    emb = _lying(random, filled(random, (images, DIM, *spatial), dtype))
    emb = emb.detach().requires_grad_() if requires_grad else emb
    return {"emb": emb, "labels": _lying(random, labels.to(integer))}


def _lying(random: Random, tensor: Tensor) -> Tensor:
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t,
        lambda t: t.repeat_interleave(2, dim=-1)[..., ::2],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: t[:1].expand(t.shape) if t.shape[0] else t,
        lambda t: t.as_subclass(Subclass),
    ]
    return random.choice(ways)(tensor)


def _bank_options(random: Random, sharded: bool) -> dict[str, Any]:
    return {
        "num_classes": CLASSES,
        "dim": DIM,
        "pixel_slots": random.choice((1, 4, 9, 40)),
        "region_slots": random.choice((1, 5, 20)),
        "pixels_per_image": random.choice((1, 2, 10, 100)),
        "ignore_index": IGNORE,
        "dtype": random.choice(FLOATS),
        "sharded": sharded,
    }


def _loss_options(random: Random, kind: Any, bank: dict[str, Any] | None) -> dict[str, Any]:
    contrast: list[Any] = [None, None, ("batch",)]
    if bank is not None:
        contrast += [("regions",), ("regions", "batch")]
    if bank is not None and kind is PixelContrastLoss:
        contrast += [("pixels",), ("pixels", "regions"), ("regions", "batch", "pixels")]
    sampler = random.choice(SAMPLERS)(
        max_anchors=random.choice((3, 20, 1024, 1024)),
        max_views=random.choice((1, 2, 100)),
        min_pixels=random.choice((1, 2)),
    )
    return {
        "temperature": random.choice((0.07, 0.1, 0.5, 1.0)),
        "base_temperature": random.choice((None, 0.07, 1)),
        "ignore_index": IGNORE,
        "anchor_sampler": sampler,
        "negative_sampler": _mining(random),
        "contrast_with": random.choice(contrast),
        "denominator": random.choice(("negatives", "all")),
        "normalize": random.random() < 0.9,
        "reduction": random.choice(("mean", "mean", "sum")),
        "update_bank": random.random() < 0.8,
        "gather": random.random() < 0.8,
        "backend": random.choice(("dense", "tiled", "auto")),
    }


def _mining(random: Random) -> HardNegativeSampler | None:
    """Mostly without chance: ranks number pairs otherwise than one process does."""
    strategies: tuple[Strategy | None, ...] = (None, None, None, "hardest", "semi-hard", "random")
    strategy = random.choice(strategies)
    if strategy is None:
        return None
    few = (1, 3) if strategy == "hardest" or random.random() < 0.2 else (EVERYTHING,)
    return HardNegativeSampler(
        strategy=strategy,
        ratio=random.choice((0.1, 0.5, 1.0)),
        num_negatives=random.choice((None, *few)),
        num_positives=random.choice((None, *few)),
    )


def perform(call: RankCall, group: Any) -> dict[str, Any]:
    """Make the call, together with all ranks of a group; what came of it, as plain tensors."""
    draw = torch.Generator().manual_seed(call.seed)
    torch.default_generator.manual_seed(call.seed)
    bank = None if call.bank is None else MemoryBank(**call.bank, process_group=group)
    for fill in call.fills:
        if bank is not None:
            bank.update(**fill)
    before = _state(bank)
    if call.target == "bank.update":
        assert bank is not None  # made for every call of it
        bank.update(**call.arguments, generator=draw)
        return {"before": before, "after": _state(bank)}
    if call.target == "checkpoint":
        assert bank is not None  # the same
        return _checkpoint(bank, call, before, group)
    loss = call.kind(**call.options, bank=bank, process_group=group).train(call.training)
    value, sample = loss(**call.arguments, generator=draw, return_anchors=True)
    emb = call.arguments["emb"]
    gradient = None
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), emb)
    return {
        "loss": _plain(value),
        "gradient": None if gradient is None else _plain(gradient),
        "anchors": _plain(loss._call.anchors),
        "indices": _plain(sample.indices),
        "labels": _plain(sample.labels),
        "contrast_with": loss.contrast_with,
        "before": before,
        "after": _state(bank),
    }


def _checkpoint(
    bank: MemoryBank, call: RankCall, before: dict[str, Tensor], group: Any
) -> dict[str, Any]:
    """A bank that is loaded goes on as the one that was saved; another rank's shard is refused."""
    assert call.bank is not None  # made for every call of a checkpoint
    again = MemoryBank(**call.bank, process_group=group)
    again.load_state_dict(copy.deepcopy(before))
    loaded = _state(again)
    refused = True
    if "shard" in before:
        other = copy.deepcopy(before)
        rank, size = other["shard"].tolist()
        other["shard"][0] = (rank + 1) % size
        try:
            again.load_state_dict(other)
            refused = False
        except RuntimeError as error:
            refused = "shard: expected that of rank" in str(error)
    for one in (bank, again):
        draw = torch.Generator().manual_seed(call.seed)
        one.update(**call.arguments, generator=draw)
    return {
        "before": before,
        "after": _state(bank),
        "loaded": loaded,
        "again": _state(again),
        "refused": refused,
    }


def _state(bank: MemoryBank | None) -> dict[str, Tensor]:
    state = {} if bank is None else bank.state_dict()
    return {name: _plain(value).clone() for name, value in state.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).contiguous()
