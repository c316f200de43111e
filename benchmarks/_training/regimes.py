"""The tables with a pretrained network: regimes of segmentation, and the study of the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks._training.data import CORRUPTIONS
from benchmarks._training.recipe import RECIPES
from benchmarks._training.table import ALONE, Rows, Table

SGD = replace(RECIPES["camvid"], steps=500)
BANK: dict[str, Any] = {"bank": 100, "pixels_per_image": 2}
ADAMW = replace(SGD, optimizer="adamw", learning_rate=0.002, weight_decay=0.01, schedule="cosine")

NEW_CLASSES = (
    ("sign", "fence", "car", "bicyclist"),
    ("pole", "pavement", "tree", "pedestrian"),
    ("sky", "building", "road"),
)
"""Every class is new in one of the splits."""
EMBEDDING = replace(
    ADAMW,
    size=(96, 128),
    steps=300,
    network="lite0",
    learning_rate=0.001,
    weight=0.5,
    projected="samples",
)

LOWER: Rows = {"rate 0.0005": {"sources": (), "learning_rate": 0.0005}}


def _embedding(title: str, rows: Rows, seeds: tuple[int, ...], split: str = "tuning") -> Table:
    """Compare embeddings of classes that training has not seen, on a known and on a new scene."""
    other = "0001TP" if split == "tuning" else "0006R0"
    base = replace(EMBEDDING, without=other)
    return Table(title, base, rows, seeds, split, class_splits=NEW_CLASSES, file="embedding.jsonl")


def _study(rows: Rows) -> Table:
    title = "The embedding study, on val and a new sequence"
    return _embedding(title, rows, tuple(range(100, 112)), "val")


def _regime(title: str, scored: str = "heldout", **changes: Any) -> Table:
    """Screen contrast with the pretrained network, where cross entropy may leave it room."""
    base = replace(EMBEDDING, without="0001TP", **changes)
    rows: Rows = {**ALONE, **{f"weight {weight:g}": {"weight": weight} for weight in (0.01, 0.1)}}
    return Table(title, base, rows, (0, 1, 2, 3), file="regimes.jsonl", scored=scored)


REGIMES = {
    "baseline": Table(
        "Cross entropy alone with the pretrained network: rate, weight decay and augmentation",
        replace(EMBEDDING, without="0001TP", sources=()),
        {
            "rate 0.001": {},
            "rate 0.0005": {"learning_rate": 0.0005},
            **{f"rate {rate:g}": {"learning_rate": rate} for rate in (0.002, 0.004, 0.008)},
            "rate 0.004, weight decay 0.05": {"learning_rate": 0.004, "weight_decay": 0.05},
            "rate 0.004, crops and colors": {"learning_rate": 0.004, "crops": True},
        },
        seeds=(0, 1),
        file="regimes.jsonl",
    ),
    "embedding-screening": _embedding(
        "What the embedding is good for besides: options of both arms, one seed",
        {
            **ALONE,
            **LOWER,
            "rate 0.002": {"sources": (), "learning_rate": 0.002},
            "label smoothing 0.1": {"sources": (), "label_smoothing": 0.1},
            "twice the steps": {"sources": (), "steps": 600},
            **{f"contrast, weight {weight:g}": {"weight": weight} for weight in (0.1, 0.5, 2)},
        },
        seeds=(0,),
    ),
    "embedding-tuning": _embedding(
        "The same, for every split of the classes",
        {
            **ALONE,
            **LOWER,
            "contrast, weight 0.5": {},
            "contrast, weight 0.5, rate 0.0005": {"learning_rate": 0.0005},
            "contrast, weight 2": {"weight": 2},
        },
        seeds=(0, 1, 2),
    ),
    "embedding": _study({**ALONE, "contrast, weight 0.5": {}}),
    "embedding-lower": _study(LOWER),
    "pretrained": _regime("A network pretrained on ImageNet"),
    "pretrained-long": _regime("The same, 1,500 steps", steps=1500),
    # These are scores of the runs of `pretrained`.
    "new-sequence": _regime("A sequence that training has not seen", "other"),
    **{name: _regime(f"Corrupted images: {name}", name) for name in CORRUPTIONS},
    **{
        f"few-{count}": _regime(f"{count} labelled images", labelled=count)
        for count in (12, 25, 50, 100)
    },
    **{
        f"wrong-{percent}": _regime(f"{percent}% wrong labels", wrong=percent / 100)
        for percent in (10, 30)
    },
}
