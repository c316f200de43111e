"""Random calls that all ranks make together; a number determines the call.

Options are the same on all ranks, data is each rank's own. Where something is spoiled, all ranks
get the same data too: either all of them refuse it or none does.
"""

from __future__ import annotations

import copy
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.arguments import (
    CLASSES,
    IGNORE,
    LOSSES,
    SAMPLERS,
    Arguments,
    bank_options,
    generator_of,
    loss_options,
    marked_labels,
)
from benchmarks.reliability.calls import spoil
from benchmarks.reliability.values import FLOATS, LAYOUTS, as_subclass, filled
from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast.mining import Strategy

EVERYTHING = 10**6
"""A number of entries that no selection reaches."""


class RankCall(NamedTuple):
    """The call of one rank.

    Attributes:
        target: `"loss"`, `"bank.update"` or `"checkpoint"`.
        kind: class of the loss.
        options: of the loss.
        bank: options of the bank, or None.
        fills: arguments of earlier `bank.update` calls.
        training: whether the loss is in training mode.
        arguments: of the call, without its generator.
        seed: of this rank's generators.
        spoiled: names of options and arguments that may be unsuitable.
    """

    target: str
    kind: Any
    options: Arguments
    bank: Arguments | None
    fills: list[Arguments]
    training: bool
    arguments: Arguments
    seed: int
    spoiled: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.target}({', '.join(self.spoiled)})"


def make_rank_call(number: int, rank: int) -> RankCall:
    """Make the call of a number for one rank."""
    shared = Random(number)
    target = shared.choice(("loss", "loss", "loss", "loss", "bank.update", "checkpoint"))
    dtype = shared.choice(FLOATS)
    bank = _bank_options(shared) if target != "loss" or shared.random() < 0.7 else None
    num_fills = shared.choice((0, 1, 3))
    kind = shared.choice(LOSSES)
    options = _loss_options(shared, kind, bank)
    training = shared.random() < 0.8
    wants_gradient, weighted = shared.random() < 0.8, shared.random() < 0.3
    places = ["arguments"] + (["options"] if target == "loss" else []) + (["bank"] if bank else [])
    num_spoiled = shared.choice((0, 0, 0, 1, 1, 2))
    selected = [(shared.choice(places), shared.random()) for _ in range(num_spoiled)]

    own = Random(f"{number} {0 if num_spoiled else rank}")
    fills = [_data(own, shared.choice(FLOATS), False) for _ in range(num_fills)]
    arguments = _data(own, dtype, wants_gradient and target == "loss")
    if target == "loss":
        shape = arguments["labels"].shape
        predicted = torch.randint(0, CLASSES, shape, generator=generator_of(own))
        arguments["preds"] = own.choice((None, predicted))
        arguments["weight"] = torch.rand(shape, generator=generator_of(own)) if weighted else None
    spoiled = []
    for place, part in selected:
        values = {"arguments": arguments, "options": options, "bank": bank}[place]
        assert values is not None  # only existing places are selected
        names = sorted(set(values) - {"gather", "anchor_sampler", "process_group"})
        name = names[int(part * len(names))]
        values[name] = spoil(shared, values[name])
        spoiled.append(name)
    seed = Random(f"{number} {rank} seed").getrandbits(32)
    return RankCall(
        *(target, kind, options, bank, fills, training, arguments, seed, tuple(spoiled))
    )


def _data(random: Random, dtype: torch.dtype, requires_grad: bool) -> Arguments:
    """Draw an embedding and its labels, of any size and memory layout."""
    images = random.choice((0, 1, 2, 2, 3))
    spatial = tuple(random.choice((1, 2, 3, 5, 5)) for _ in range(random.choice((0, 1, 2, 2, 3))))
    if not spatial:
        images = random.choice((0, 1, 7, 12))
    factor = random.choice((1, 2)) if spatial else 1
    shape = (images, *(size * factor for size in spatial))
    labels = marked_labels(random, shape, generator_of(random))
    kind = random.choice(("any", "any", "any", "any", "ignored", "one class"))
    if kind == "ignored":
        labels[:] = -1 if labels.dtype.is_signed else IGNORE
    elif kind == "one class":
        labels[labels < CLASSES] = random.randrange(CLASSES)
    emb = _laid_out(random, filled(random, (images, 3, *spatial), dtype))
    emb = emb.detach().requires_grad_() if requires_grad else emb
    return {"emb": emb, "labels": _laid_out(random, labels)}


def _laid_out(random: Random, tensor: Tensor) -> Tensor:
    return random.choice((*LAYOUTS, as_subclass))(tensor)


def _bank_options(random: Random) -> Arguments:
    options = bank_options(random)
    del options["process_group"]
    return {
        **options,
        "pixel_slots": random.choice((1, 4, 9, 40)),
        "region_slots": random.choice((1, 5, 20)),
        "pixels_per_image": random.choice((1, 2, 10, 100)),
        "sharded": random.random() < 0.5,
    }


def _loss_options(random: Random, kind: Any, bank: Arguments | None) -> Arguments:
    contrast: list[Any] = [None, None, ("batch",)]
    if bank is not None:
        contrast += [("regions",), ("regions", "batch")]
    if bank is not None and kind is PixelContrastLoss:
        contrast += [("pixels",), ("pixels", "regions"), ("regions", "batch", "pixels")]
    options = loss_options(random, None)
    del options["bank"], options["validate"]
    return {
        **options,
        "temperature": random.choice((0.07, 0.1, 0.5, 1.0)),
        "anchor_sampler": random.choice(SAMPLERS)(
            max_anchors=random.choice((3, 20, 1024, 1024)),
            max_views=random.choice((1, 2, 100)),
            min_pixels=random.choice((1, 2)),
        ),
        "negative_sampler": _mining(random),
        "contrast_with": random.choice(contrast),
        "normalize": random.random() < 0.9,
        "reduction": random.choice(("mean", "mean", "sum")),
        "gather": random.random() < 0.8,
    }


def _mining(random: Random) -> HardNegativeSampler | None:
    """Draw a sampler, in most cases without chance: ranks number pairs differently."""
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
    """Make the call together with all ranks of a group; returns its results as plain tensors."""
    draw = torch.Generator().manual_seed(call.seed)
    torch.default_generator.manual_seed(call.seed)
    bank = None if call.bank is None else MemoryBank(**call.bank, process_group=group)
    if bank is not None:
        for fill in call.fills:
            bank.update(**fill)
    before = _state(bank)
    if call.target != "loss":
        assert bank is not None  # made for every such call
        loaded = _load_copy(bank, call, before, group) if call.target == "checkpoint" else {}
        bank.update(**call.arguments, generator=draw)
        return {"before": before, "after": _state(bank), **loaded}
    loss = call.kind(**call.options, bank=bank, process_group=group).train(call.training)
    value, sample = loss(**call.arguments, generator=draw, return_anchors=True)
    gradient = None
    if value.requires_grad:
        gradient = _plain(torch.autograd.grad(value.sum(), call.arguments["emb"])[0])
    return {
        "loss": _plain(value),
        "gradient": gradient,
        "anchors": _plain(loss._call.anchors),
        "indices": _plain(sample.indices),
        "labels": _plain(sample.labels),
        "contrast_with": loss.contrast_with,
        "before": before,
        "after": _state(bank),
    }


def _load_copy(bank: MemoryBank, call: RankCall, state: dict[str, Tensor], group: Any) -> Any:
    """Load a checkpoint into a second bank and update it; try to load another rank's shard."""
    assert call.bank is not None  # made for every call of a checkpoint
    again = MemoryBank(**call.bank, process_group=group)
    again.load_state_dict(copy.deepcopy(state))
    loaded, refused = _state(again), True
    if "shard" in state:
        other = copy.deepcopy(state)
        rank, size = other["shard"].tolist()
        other["shard"][0] = (rank + 1) % size
        try:
            again.load_state_dict(other)
            refused = False
        except RuntimeError as error:
            refused = "shard: expected that of rank" in str(error)
    again.update(**call.arguments, generator=torch.Generator().manual_seed(call.seed))
    return {"loaded": loaded, "again": _state(again), "refused": refused}


def _state(bank: MemoryBank | None) -> dict[str, Tensor]:
    state = {} if bank is None else bank.state_dict()
    return {name: _plain(value).clone() for name, value in state.items()}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).contiguous()
