"""Random calls of the public names; a seed determines the call."""

from __future__ import annotations

from collections.abc import Callable
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
    bank_in,
    bank_options,
    generator_in,
    labels_in,
    loss_options,
    maps_in,
    mining_in,
    mining_options,
    sampler_options,
    temperature_in,
    vectors_in,
)
from benchmarks.reliability.values import (
    anything,
    disguised,
    filled,
    number_in,
    tensor_in,
    thing_in,
)
from pixcontrast import HardNegativeSampler, MemoryBank, ProjectionHead
from pixcontrast.functional import info_nce

Made = tuple[str, Callable[..., Any], Arguments]
"""The name of a target, the function to call, and suitable arguments."""


class Call(NamedTuple):
    """A call; `spoiled` names the arguments that may be unsuitable."""

    target: str
    function: Callable[..., Any]
    arguments: Arguments
    spoiled: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.target}({', '.join(self.spoiled)})"


def make_call(seed: int) -> Call:
    """Make the call of a seed: suitable arguments, of which up to three are then spoiled."""
    random = Random(seed)
    target, function, arguments = random.choice(MAKERS)(random)
    spoiled = random.sample(
        sorted(arguments), min(random.choice((0, 0, 1, 1, 2, 3)), len(arguments))
    )
    for name in spoiled:
        arguments[name] = spoil(random, arguments[name])
    return Call(target, function, arguments, tuple(spoiled))


def spoil(random: Random, value: Any) -> Any:
    """Draw another value, in most cases of the same kind, so that every check is reached."""
    if isinstance(value, Tensor) and random.random() < 0.7:
        if random.random() < 0.5 and not value.is_nested:
            return disguised(random, filled(random, value.shape, value.dtype))
        return tensor_in(random, value.dtype if random.random() < 0.6 else None)
    if isinstance(value, (int, float)) and random.random() < 0.7:
        return number_in(random)
    if isinstance(value, (str, tuple, type(None))) and random.random() < 0.5:
        return thing_in(random)
    return anything(random)


def _info_nce(random: Random) -> Made:
    rows, columns, dim = (random.choice((0, 1, 2, 5, 9, 30)) for _ in range(3))
    dim = max(1, dim)
    anchors = vectors_in(random, rows, dim)
    contrast: Any = None
    labels: Any = None
    kind = random.choice(("itself", "tensor", "sequence"))
    if kind == "tensor":
        contrast, labels = vectors_in(random, columns, dim), labels_in(random, columns)
    elif kind == "sequence":
        tensors = [
            None if random.random() < 0.4 else vectors_in(random, columns, dim)
            for _ in range(random.choice((0, 1, 2, 3)))
        ]
        contrast = random.choice((list, tuple))(tensors)
        labels = [None if tensor is None else labels_in(random, columns) for tensor in tensors]
    arguments = {
        "anchors": anchors,
        "anchor_labels": labels_in(random, rows),
        "contrast": contrast,
        "contrast_labels": labels,
        "temperature": temperature_in(random),
        "denominator": random.choice(("negatives", "all")),
        "weight": random.choice((None, None, torch.rand(rows), torch.zeros(rows))),
        "negative_sampler": mining_in(random),
        "generator": generator_in(random),
        "reduction": random.choice(("mean", "sum", "none")),
        "ignore_index": IGNORE,
        "backend": random.choice(("dense", "tiled", "tiled", "auto")),
    }
    return "info_nce", info_nce, arguments


def _loss_constructor(random: Random) -> Made:
    bank = _maybe_bank(random)
    return "loss constructor", random.choice(LOSSES), loss_options(random, bank)


def _loss(random: Random) -> Made:
    bank = _maybe_bank(random)
    loss = random.choice(LOSSES)(**loss_options(random, bank)).train(random.random() < 0.8)
    arguments, shape = maps_in(random, 3)
    logits = torch.randn(shape[0], CLASSES, *shape[1:])
    arguments |= {
        "preds": random.choice((None, torch.randint(0, CLASSES, shape), logits)),
        "weight": random.choice((None, None, torch.rand(shape))),
        "generator": generator_in(random),
        "return_anchors": random.random() < 0.5,
    }
    return "loss", loss, arguments


def _sampler(random: Random) -> Made:
    kind = random.choice(SAMPLERS)
    images, pixels = random.choice((0, 1, 2, 3)), random.choice((0, 1, 5, 20))
    arguments = {
        "labels": labels_in(random, images, pixels),
        "preds": random.choice((None, labels_in(random, images, pixels))),
        "ignore_index": IGNORE,
        "generator": generator_in(random),
    }
    return "sampler", kind(**sampler_options(random, kind)), arguments


def _sampler_constructor(random: Random) -> Made:
    kind = random.choice(SAMPLERS)
    return "sampler constructor", kind, sampler_options(random, kind)


def _mining_constructor(random: Random) -> Made:
    return "mining constructor", HardNegativeSampler, mining_options(random)


def _built_loss(random: Random) -> Made:
    """Make a loss with options that may be spoiled, and call it with suitable tensors."""
    bank = _maybe_bank(random)
    options = loss_options(random, bank)
    fixed = {name: options.pop(name) for name in ("anchor_sampler", "bank", "gather")}
    emb = filled(random, (2, 3, 4, 4), torch.float32).requires_grad_()
    labels = torch.randint(0, CLASSES, (2, 4, 4))
    kind = random.choice(LOSSES)
    return "built loss", lambda **given: kind(**fixed, **given)(emb, labels), options


def _built_sampler(random: Random) -> Made:
    kind = random.choice(SAMPLERS)
    labels = torch.randint(-1, CLASSES, (2, 9))
    return (
        "built sampler",
        lambda **given: kind(**given)(labels, labels.flip(0)),
        sampler_options(random, kind),
    )


def _built_mining(random: Random) -> Made:
    anchors, labels = torch.randn(9, 3), torch.randint(-1, CLASSES, (9,))
    options: Arguments = {"backend": random.choice(("dense", "tiled"))}

    def build_and_call(**given: Any) -> Any:
        return info_nce(anchors, labels, negative_sampler=HardNegativeSampler(**given), **options)

    return "built mining", build_and_call, mining_options(random)


def _bank_constructor(random: Random) -> Made:
    return "bank constructor", MemoryBank, bank_options(random)


def _bank_update(random: Random) -> Made:
    arguments = {**maps_in(random, 3)[0], "generator": generator_in(random)}
    return "bank.update", bank_in(random).update, arguments


def _bank_entries(random: Random) -> Made:
    bank = bank_in(random)
    method = random.choice((bank.entries, bank.count, bank.slots))
    return "bank.entries", method, {"queue": random.choice(("pixels", "regions"))}


def _head_constructor(random: Random) -> Made:
    arguments = {"in_channels": 3, "dim": random.choice((1, 4)), "hidden": None, "kind": "mlp"}
    return "head constructor", ProjectionHead, arguments


def _head(random: Random) -> Made:
    head = ProjectionHead(3, 4, kind=random.choice(("mlp", "linear"))).eval()
    emb = maps_in(random, 3)[0]["emb"]
    return "head", head, {"features": emb.detach().float()}


def _maybe_bank(random: Random) -> MemoryBank | None:
    return None if random.random() < 0.5 else bank_in(random)


MAKERS: tuple[Callable[[Random], Made], ...] = (
    *([_info_nce] * 6),
    *([_loss] * 6),
    *([_sampler] * 3),
    *([_bank_update] * 3),
    *(_loss_constructor, _sampler_constructor, _mining_constructor),
    *(_built_loss, _built_loss, _built_sampler, _built_mining),
    *(_bank_constructor, _bank_entries, _head_constructor, _head),
)
