"""The tables of the study of the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks._training.recipe import BANK, EMBEDDING
from benchmarks._training.table import ALONE, Rows, Table

NEW_CLASSES = (
    ("sign", "fence", "car", "bicyclist"),
    ("pole", "pavement", "tree", "pedestrian"),
    ("sky", "building", "road"),
)
"""Every class is new in one of the splits."""
CONTRAST: Rows = {"contrast, weight 0.5": {}}
LOWER: Rows = {"rate 0.0005": {"sources": (), "learning_rate": 0.0005}}
LONGER: Rows = {"twice the steps": {"sources": (), "steps": 600}}


def _embedding(
    title: str, rows: Rows, seeds: tuple[int, ...], split: str = "tuning", **changes: Any
) -> Table:
    """Compare embeddings of new classes, on a known and on a new sequence."""
    other = "0001TP" if split == "tuning" else "0006R0"
    base = replace(EMBEDDING, without=other, **changes)
    return Table(title, base, rows, seeds, split, class_splits=NEW_CLASSES, file="embedding.jsonl")


def _study(rows: Rows) -> Table:
    title = "The embedding study, on val and a new sequence"
    return _embedding(title, rows, tuple(range(100, 112)), "val")


def _larger(rows: Rows) -> Table:
    title = "180×240, on val and a new sequence"
    return _embedding(title, rows, tuple(range(112, 124)), "val", size=(180, 240))


EMBEDDING_TABLES = {
    "embedding-screening": _embedding(
        "What the embedding is good for besides: options of both arms, one seed",
        {
            **ALONE,
            **LOWER,
            "rate 0.002": {"sources": (), "learning_rate": 0.002},
            "label smoothing 0.1": {"sources": (), "label_smoothing": 0.1},
            **LONGER,
            **{f"contrast, weight {weight:g}": {"weight": weight} for weight in (0.1, 0.5, 2)},
        },
        seeds=(0,),
    ),
    "embedding-tuning": _embedding(
        "The same, for every split of the classes",
        {
            **ALONE,
            **LOWER,
            **CONTRAST,
            "contrast, weight 0.5, rate 0.0005": {"learning_rate": 0.0005},
            "contrast, weight 2": {"weight": 2},
        },
        seeds=(0, 1, 2),
    ),
    "embedding-options": _embedding(
        "What the gain depends on: length, augmentation, a bank",
        {
            **ALONE,
            **CONTRAST,
            "contrast, both banks": {**BANK, "pixels_per_region": 128},
            **LONGER,
            "contrast, twice the steps": {"steps": 600},
            "crops and colors": {"sources": (), "crops": True},
            "contrast, crops and colors": {"crops": True},
        },
        seeds=(0, 1, 2),
    ),
    "embedding-larger": _embedding(
        "What the gain depends on: 180×240",
        {**ALONE, **CONTRAST, **LOWER, **LONGER},
        seeds=(0, 1, 2),
        size=(180, 240),
    ),
    # What had gained there, confirmed with fresh seeds.
    "embedding-larger-val": _larger({**ALONE, **CONTRAST}),
    # What is best for cross entropy there on tuning.
    "embedding-larger-lower": _larger({**LOWER, **CONTRAST}),
    "embedding": _study({**ALONE, **CONTRAST}),
    "embedding-lower": _study(LOWER),
}
