"""One random call of one public name, made of a seed alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.values import (
    FLOATS,
    INTEGERS,
    anything,
    disguised,
    filled,
    number_in,
    tensor_in,
    thing_in,
)
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast._equation.backends import Backend
from pixcontrast.functional import info_nce

IGNORE = 255
CLASSES = 4
LOSSES: tuple[Any, ...] = (PixelContrastLoss, RegionContrastLoss)
SAMPLERS: tuple[Any, ...] = (HardAnchorSampler, RandomAnchorSampler)


class Call(NamedTuple):
    """What is called, with which arguments; `spoiled` names those that need not fit."""

    target: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    spoiled: tuple[str, ...]


def make_call(seed: int) -> Call:
    """The call of a seed: arguments that fit, of which none to three are then spoiled."""
    random = Random(seed)
    target, function, arguments = random.choice(MAKERS)(random)
    spoiled = random.sample(
        sorted(arguments), min(random.choice((0, 0, 1, 1, 2, 3)), len(arguments))
    )
    for name in spoiled:
        arguments[name] = spoil(random, arguments[name])
    return Call(target, function, arguments, tuple(spoiled))


def spoil(random: Random, value: Any) -> Any:
    """Something else: of the same kind mostly, so that checks are met one by one."""
    if isinstance(value, Tensor) and random.random() < 0.7:
        if random.random() < 0.5 and not value.is_nested:
            return disguised(random, filled(random, value.shape, value.dtype))
        return tensor_in(random, value.dtype if random.random() < 0.6 else None)
    if isinstance(value, (int, float)) and random.random() < 0.7:
        return number_in(random)
    if isinstance(value, (str, tuple, type(None))) and random.random() < 0.5:
        return thing_in(random)
    return anything(random)


def _labels(random: Random, *shape: int, classes: int = CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    labels = torch.randint(0, classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.15] = IGNORE
    signed = random.choice(INTEGERS)
    if signed == torch.int8:
        labels[labels == IGNORE] = -1
    return disguised(random, labels.to(signed))


def _vectors(random: Random, *shape: int) -> Tensor:
    return disguised(random, filled(random, shape, random.choice(FLOATS)))


def _generator(random: Random) -> torch.Generator | None:
    seed = random.getrandbits(32)
    return None if random.random() < 0.3 else torch.Generator().manual_seed(seed)


def _temperature(random: Random) -> float:
    return random.choice((0.07, 0.1, 0.1, 0.5, 1.0, 1, 0.005, 100.0))


def _mining_options(random: Random) -> dict[str, Any]:
    return {
        "strategy": random.choice(("hardest", "semi-hard", "random")),
        "ratio": random.choice((0.1, 0.5, 1, 1.0)),
        "num_negatives": random.choice((None, 1, 3, 2048)),
        "num_positives": random.choice((None, 1, 2, 1024)),
    }


def _mining(random: Random) -> HardNegativeSampler | None:
    return None if random.random() < 0.6 else HardNegativeSampler(**_mining_options(random))


def _info_nce(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    rows, columns, dim = (random.choice((0, 1, 2, 5, 9, 30)) for _ in range(3))
    dim = max(1, dim)
    anchors = _vectors(random, rows, dim)
    contrast: Any
    labels: Any
    kind = random.choice(("itself", "tensor", "sequence"))
    if kind == "itself":
        contrast, labels = None, None
    elif kind == "tensor":
        contrast, labels = _vectors(random, columns, dim), _labels(random, columns)
    else:
        pieces = [None if random.random() < 0.4 else _vectors(random, columns, dim)
                  for _ in range(random.choice((0, 1, 2, 3)))]  # fmt: skip
        contrast = random.choice((list, tuple))(pieces)
        labels = [None if piece is None else _labels(random, columns) for piece in pieces]
    arguments = {
        "anchors": anchors,
        "anchor_labels": _labels(random, rows),
        "contrast": contrast,
        "contrast_labels": labels,
        "temperature": _temperature(random),
        "denominator": random.choice(("negatives", "all")),
        "weight": random.choice((None, None, torch.rand(rows), torch.zeros(rows))),
        "mining": _mining(random),
        "generator": _generator(random),
        "reduction": random.choice(("mean", "sum", "none")),
        "ignore_index": IGNORE,
        "backend": random.choice(("dense", "tiled", "tiled", "auto")),
    }
    return "info_nce", info_nce, arguments


def _spatial(random: Random) -> tuple[int, ...]:
    return tuple(random.choice((1, 2, 3, 5)) for _ in range(random.choice((1, 2, 2, 3))))


def _maps(random: Random, dim: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The embedding and its labels, as maps or points, and the shape of the labels."""
    images = random.choice((0, 1, 2, 3))
    if random.random() < 0.2:
        shape: tuple[int, ...] = (random.choice((0, 1, 7)),)
        return {"emb": _vectors(random, *shape, dim), "labels": _labels(random, *shape)}, shape
    spatial = _spatial(random)
    shape = (images, *(size * random.choice((1, 2)) for size in spatial))
    emb = _vectors(random, images, dim, *spatial)
    return {"emb": emb, "labels": _labels(random, *shape)}, shape


def _bank_options(random: Random) -> dict[str, Any]:
    return {
        "num_classes": CLASSES,
        "dim": 3,
        "pixel_slots": random.choice((0, 1, 4, 9)),
        "region_slots": random.choice((0, 1, 5)),
        "pixels_per_image": random.choice((0, 1, 2, 10)),
        "ignore_index": IGNORE,
        "dtype": random.choice(FLOATS),
        "sharded": False,
        "process_group": None,
    }


def _bank(random: Random) -> MemoryBank:
    bank = MemoryBank(**_bank_options(random))
    for _ in range(random.choice((0, 1, 4))):
        maps = filled(random, (2, 3, 4, 4), torch.float32)
        bank.update(maps, torch.randint(0, CLASSES, (2, 4, 4)))
    return bank


def _sampler_options(random: Random, kind: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_anchors": random.choice((1, 3, 20, 1024)),
        "max_views": random.choice((1, 2, 100)),
        "min_pixels": random.choice((1, 2, 5)),
    }
    if kind is HardAnchorSampler:
        options["hard_fraction"] = random.choice((0, 0.3, 0.5, 1.0))
    return options


def _loss_options(random: Random, bank: MemoryBank | None) -> dict[str, Any]:
    kind = random.choice(SAMPLERS)
    return {
        "temperature": _temperature(random),
        "base_temperature": random.choice((None, 0.07, 1)),
        "ignore_index": IGNORE,
        "anchor_sampler": random.choice((None, kind(**_sampler_options(random, kind)))),
        "negative_sampler": _mining(random),
        "bank": bank,
        "contrast": random.choice((None, None, ("batch",))),
        "denominator": random.choice(("negatives", "all")),
        "normalize": random.random() < 0.8,
        "reduction": random.choice(("mean", "sum", "none")),
        "update_bank": random.random() < 0.8,
        "gather": False,
        "validate": random.random() < 0.2,
        "backend": random.choice(("dense", "tiled", "auto")),
    }


def _loss_constructor(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    bank = None if random.random() < 0.5 else _bank(random)
    return "loss constructor", random.choice(LOSSES), _loss_options(random, bank)


def _loss(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    bank = None if random.random() < 0.5 else _bank(random)
    loss = random.choice(LOSSES)(**_loss_options(random, bank)).train(random.random() < 0.8)
    arguments, shape = _maps(random, 3)
    logits = torch.randn(shape[0], CLASSES, *shape[1:])
    arguments |= {
        "preds": random.choice((None, torch.randint(0, CLASSES, shape), logits)),
        "weight": random.choice((None, None, torch.rand(shape))),
        "generator": _generator(random),
        "return_anchors": random.random() < 0.5,
    }
    return "loss", loss, arguments


def _sampler(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    kind = random.choice(SAMPLERS)
    images, pixels = random.choice((0, 1, 2, 3)), random.choice((0, 1, 5, 20))
    arguments = {
        "labels": _labels(random, images, pixels),
        "preds": random.choice((None, _labels(random, images, pixels))),
        "ignore_index": IGNORE,
        "generator": _generator(random),
    }
    return "sampler", kind(**_sampler_options(random, kind)), arguments


def _sampler_constructor(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    kind = random.choice(SAMPLERS)
    return "sampler constructor", kind, _sampler_options(random, kind)


def _mining_constructor(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    return "mining constructor", HardNegativeSampler, _mining_options(random)


def _built_loss(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    """A loss of options that may be spoiled, then called; samplers and bank as they should be."""
    bank = None if random.random() < 0.5 else _bank(random)
    options = _loss_options(random, bank)
    fixed = {name: options.pop(name) for name in ("anchor_sampler", "bank", "gather")}
    emb = filled(random, (2, 3, 4, 4), torch.float32).requires_grad_()
    labels = torch.randint(0, CLASSES, (2, 4, 4))

    def build_and_call(**given: Any) -> Any:
        return kind(**fixed, **given)(emb, labels)

    kind = random.choice(LOSSES)
    return "built loss", build_and_call, options


def _built_sampler(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    kind = random.choice(SAMPLERS)
    labels = torch.randint(-1, CLASSES, (2, 9))

    def build_and_call(**given: Any) -> Any:
        return kind(**given)(labels, labels.flip(0))

    return "built sampler", build_and_call, _sampler_options(random, kind)


def _built_mining(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    anchors, labels = torch.randn(9, 3), torch.randint(-1, CLASSES, (9,))
    backend: Backend = random.choice(("dense", "tiled"))

    def build_and_call(**given: Any) -> Any:
        return info_nce(anchors, labels, mining=HardNegativeSampler(**given), backend=backend)

    return "built mining", build_and_call, _mining_options(random)


def _bank_constructor(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    return "bank constructor", MemoryBank, _bank_options(random)


def _bank_update(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    arguments = {**_maps(random, 3)[0], "generator": _generator(random)}
    return "bank.update", _bank(random).update, arguments


def _bank_entries(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    bank = _bank(random)
    method = random.choice((bank.entries, bank.count, bank.slots))
    return "bank.entries", method, {"queue": random.choice(("pixels", "regions"))}


def _head_constructor(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    arguments = {"in_channels": 3, "dim": random.choice((1, 4)), "hidden": None, "kind": "mlp"}
    return "head constructor", ProjectionHead, arguments


def _head(random: Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    head = ProjectionHead(3, 4, kind=random.choice(("mlp", "linear"))).eval()
    emb = _maps(random, 3)[0]["emb"]
    return "head", head, {"features": emb.detach().float()}


MAKERS = (
    *([_info_nce] * 6),
    *([_loss] * 6),
    *([_sampler] * 3),
    *([_bank_update] * 3),
    *(_loss_constructor, _sampler_constructor, _mining_constructor),
    *(_built_loss, _built_loss, _built_sampler, _built_mining),
    *(_bank_constructor, _bank_entries, _head_constructor, _head),
)
