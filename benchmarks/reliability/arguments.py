"""Random suitable arguments: tensors, options and banks."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.values import FLOATS, INTEGERS, disguised, filled
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
    RegionContrastLoss,
)

IGNORE = 255
CLASSES = 4
LOSSES: tuple[Any, ...] = (PixelContrastLoss, RegionContrastLoss)
SAMPLERS: tuple[Any, ...] = (HardAnchorSampler, RandomAnchorSampler)
Arguments = dict[str, Any]


def labels_in(random: Random, *shape: int) -> Tensor:
    """Draw labels of any integer dtype, some of them ignored."""
    return disguised(random, marked_labels(random, shape, generator_of(random)))


def marked_labels(random: Random, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Draw labels; those to ignore are `IGNORE`, or −1 in a dtype that cannot hold it."""
    labels = torch.randint(0, CLASSES, shape, generator=draw)
    labels[torch.rand(shape, generator=draw) < 0.15] = IGNORE
    dtype = random.choice(INTEGERS)
    if dtype == torch.int8:
        labels[labels == IGNORE] = -1
    return labels.to(dtype)


def generator_of(random: Random) -> torch.Generator:
    """Make a generator with a random seed."""
    return torch.Generator().manual_seed(random.getrandbits(32))


def vectors_in(random: Random, *shape: int) -> Tensor:
    """Draw embeddings of any floating dtype."""
    return disguised(random, filled(random, shape, random.choice(FLOATS)))


def generator_in(random: Random) -> torch.Generator | None:
    """Draw a generator or None."""
    seed = random.getrandbits(32)
    return None if random.random() < 0.3 else torch.Generator().manual_seed(seed)


def temperature_in(random: Random) -> float:
    """Draw a temperature."""
    return random.choice((0.07, 0.1, 0.1, 0.5, 1.0, 1, 0.005, 100.0))


def mining_options(random: Random) -> Arguments:
    """Draw the options of a `HardNegativeSampler`."""
    return {
        "strategy": random.choice(("hardest", "semi-hard", "random")),
        "ratio": random.choice((0.1, 0.5, 1, 1.0)),
        "num_negatives": random.choice((None, 1, 3, 2048)),
        "num_positives": random.choice((None, 1, 2, 1024)),
    }


def mining_in(random: Random) -> HardNegativeSampler | None:
    """Draw a `HardNegativeSampler` or None."""
    return None if random.random() < 0.6 else HardNegativeSampler(**mining_options(random))


def maps_in(random: Random, dim: int) -> tuple[Arguments, tuple[int, ...]]:
    """Draw an embedding with its labels, as maps or points, and the shape of the labels."""
    images = random.choice((0, 1, 2, 3))
    if random.random() < 0.2:
        shape: tuple[int, ...] = (random.choice((0, 1, 7)),)
        return {"emb": vectors_in(random, *shape, dim), "labels": labels_in(random, *shape)}, shape
    spatial = tuple(random.choice((1, 2, 3, 5)) for _ in range(random.choice((1, 2, 2, 3))))
    shape = (images, *(size * random.choice((1, 2)) for size in spatial))
    emb = vectors_in(random, images, dim, *spatial)
    return {"emb": emb, "labels": labels_in(random, *shape)}, shape


def bank_options(random: Random) -> Arguments:
    """Draw the options of a `MemoryBank`."""
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


def bank_in(random: Random) -> MemoryBank:
    """Draw a bank with some entries."""
    bank = MemoryBank(**bank_options(random))
    for _ in range(random.choice((0, 1, 4))):
        maps = filled(random, (2, 3, 4, 4), torch.float32)
        bank.update(maps, torch.randint(0, CLASSES, (2, 4, 4)))
    return bank


def sampler_options(random: Random, kind: Any) -> Arguments:
    """Draw the options of an anchor sampler."""
    options: Arguments = {
        "max_anchors": random.choice((1, 3, 20, 1024)),
        "max_views": random.choice((1, 2, 100)),
        "min_pixels": random.choice((1, 2, 5)),
    }
    if kind is HardAnchorSampler:
        options["hard_fraction"] = random.choice((0, 0.3, 0.5, 1.0))
    return options


def loss_options(random: Random, bank: MemoryBank | None) -> Arguments:
    """Draw the options of a loss."""
    kind = random.choice(SAMPLERS)
    return {
        "temperature": temperature_in(random),
        "base_temperature": random.choice((None, 0.07, 1)),
        "ignore_index": IGNORE,
        "anchor_sampler": random.choice((None, kind(**sampler_options(random, kind)))),
        "negative_sampler": mining_in(random),
        "bank": bank,
        "contrast_with": random.choice((None, None, ("batch",))),
        "denominator": random.choice(("negatives", "all")),
        "normalize": random.random() < 0.8,
        "reduction": random.choice(("mean", "sum", "none")),
        "update_bank": random.random() < 0.8,
        "gather": False,
        "validate": random.random() < 0.2,
        "backend": random.choice(("dense", "tiled", "auto")),
    }
