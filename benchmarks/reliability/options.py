"""Random options of samplers, banks and heads: suitable ones."""

from __future__ import annotations

from random import Random
from typing import Any

from benchmarks.reliability.values import FLOATS
from pixcontrast import HardAnchorSampler

IGNORE, CLASSES, DIM = 255, 4, 3
EVERYTHING = 10**6
"""A number of entries that no selection and no cap reaches."""
Arguments = dict[str, Any]


def temperature_in(random: Random) -> float:
    extreme = random.choice((0.005, 100.0))
    return random.choice((0.07, 0.1, 0.1, 0.5, 0.5, 1.0, 1, extreme))


def mining_options(random: Random) -> dict[str, Arguments]:
    """Draw the options of a `HardNegativeSampler`, in most cases none."""
    options = {
        "strategy": random.choice(("hardest", "semi-hard", "random")),
        "ratio": random.choice((0.1, 0.5, 1, 1.0)),
        "num_negatives": random.choice((None, 1, 3, EVERYTHING)),
        "num_positives": random.choice((None, 1, 2, EVERYTHING)),
    }
    return {"mining": options} if random.random() < 0.3 else {}


def sampler_options(random: Random, kind: Any) -> Arguments:
    options: Arguments = {
        "max_anchors": random.choice((1, 3, 20, 20, 1024, 1024)),
        "max_views": random.choice((1, 2, 100)),
        "min_pixels": random.choice((1, 1, 2, 5)),
        "max_per_class": random.choice((None, None, 1, 4, EVERYTHING)),
    }
    if kind is HardAnchorSampler:
        options["hard_fraction"] = random.choice((0, 0.3, 0.5, 1.0))
    return options


def bank_options(random: Random, size: int) -> Arguments:
    return {
        "num_classes": CLASSES,
        "dim": DIM,
        "pixel_slots": random.choice((0, 1, 4, 9)),
        "region_slots": random.choice((0, 1, 5)),
        "pixels_per_image": random.choice((0, 1, 2, 10, 100)),
        "pixels_per_region": random.choice((None, None, 1, 2, EVERYTHING)),
        "ignore_index": IGNORE,
        "dtype": random.choice(FLOATS),
        "persistent": random.random() < 0.8,
        "sharded": size > 1 and random.random() < 0.5,
        "process_group": None,
    }


def head_options(random: Random, size: int) -> Arguments:
    """Draw the options of a head. One rank alone may have one row, without batch statistics."""
    kinds = (("linear", None), ("mlp", None), ("mlp", "layer"), ("mlp", "batch"))
    kind, norm = random.choice(kinds if size == 1 else kinds[:-1])
    return {"in_channels": DIM, "dim": DIM, "hidden": None, "kind": kind, "norm": norm}
