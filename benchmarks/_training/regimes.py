"""The tables with a pretrained network: regimes of segmentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from benchmarks._training.data import CORRUPTIONS
from benchmarks._training.embedding_tables import EMBEDDING_TABLES
from benchmarks._training.recipe import BANK, EMBEDDING, SGD
from benchmarks._training.table import ALONE, WITHOUT, Rows, Table

BALANCED: dict[str, Any] = {"max_per_class": 24}
"""Half of the anchors that a class has if it is in every image."""
PAPERS_OPTIMIZER: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "polynomial",
    "weight_decay": SGD.weight_decay,
}
PRETRAINING: Rows = {"pretraining by contrast": {"pretraining": 0.5, "weight": 1.0}}

WEIGHTS = (0.01, 0.1)
TUNED = replace(EMBEDDING, learning_rate=0.004, weight_decay=0.05)
"""The best row of the table `baseline`, from which every regime starts."""
SCENARIOS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "supervised": ("Fully supervised", "heldout", {}),
    "new-sequence": ("A sequence that training has not seen", "other", {}),
    **{name: (f"Corrupted images: {name}", name, {}) for name in CORRUPTIONS},
    **{
        f"few-{count}": (f"{count} labeled images", "heldout", {"labelled": count})
        for count in (12, 25, 50, 100)
    },
    "new-sequence-tuned": (
        "A new sequence, at the rate that was best for the sequence of tuning",
        "other",
        {"learning_rate": 0.0005, "weight_decay": 0.01},
    ),
    "self-training": (
        "25 labeled images, a mean teacher for the others",
        "heldout",
        {"labelled": 25, "confidence": 0.9},
    ),
    **{
        f"wrong-{percent}": (f"{percent}% wrong labels", "heldout", {"wrong": percent / 100})
        for percent in (10, 30)
    },
    "smoothing": ("Label smoothing 0.3", "heldout", {"label_smoothing": 0.3}),
    "wrong-30-smoothing": (
        "30% wrong labels, label smoothing 0.3",
        "heldout",
        {"wrong": 0.3, "label_smoothing": 0.3},
    ),
    "wrong-30-generalized": (
        "30% wrong labels, generalized cross entropy",
        "heldout",
        {"wrong": 0.3, "generalized": 0.7},
    ),
    "dilated": ("Masks of labels dilated by 2 pixels", "heldout", {"dilated": 2}),
    "sgd": ("SGD as in the paper", "heldout", {**PAPERS_OPTIMIZER, "learning_rate": 0.1}),
    "600-steps": ("600 steps", "heldout", {"steps": 600}),
    "balanced": ("Classes weighted by their frequency", "heldout", {"class_weights": True}),
    "3000-steps": ("3,000 steps", "heldout", {"steps": 3000}),
    "larger": ("180×240", "heldout", {"size": (180, 240)}),
}
"""Title of each regime, images that are compared, and changes to both arms.

The first ones are scores of the same runs.
"""
ONE_WEIGHT = ("3000-steps", "larger", "smoothing", "wrong-30-smoothing")
"""Regimes that are screened with weight 0.1 alone."""
CONFIRMED, REPLICATED = range(200, 212), range(220, 228)
"""Seeds of the confirmation and of its replication."""


def _by_weight(weights: Iterable[float]) -> Rows:
    return {**WITHOUT, **{f"weight {weight:g}": {"weight": weight} for weight in weights}}


def _screening(
    name: str, rows: Rows | None = None, rate: float | None = None, **more: Any
) -> Table:
    """Screen contrast in a regime, on tuning; `more` are changes to both arms."""
    title, scored, changes = SCENARIOS[name]
    base = replace(TUNED, without="0001TP", **changes, **more)
    if rate is not None:
        base = replace(base, learning_rate=rate, weight_decay=EMBEDDING.weight_decay)
        title = f"{title}, rate {rate:g}"
    rows = _by_weight(WEIGHTS) if rows is None else rows
    return Table(title, base, rows, (0, 1, 2, 3), file="regimes.jsonl", scored=scored)


def _confirmation(
    name: str, weight: float, more: Rows | None = None, seeds: Iterable[int] = CONFIRMED
) -> Table:
    """Compare the chosen weight of a regime with cross entropy on val, with fresh seeds."""
    title, scored, changes = SCENARIOS[name]
    base = replace(TUNED, without="0006R0", **changes)
    rows = {**_by_weight([weight]), **(more or {})}
    return Table(title, base, rows, tuple(seeds), "val", file="regimes.jsonl", scored=scored)


MORE_STEPS: Rows = {"15% more steps": {"sources": (), "steps": 345}}
FEWER_STEPS: Rows = {
    "200 steps": {"sources": (), "steps": 200},
    "200 steps, weight 0.1": {"steps": 200, "weight": 0.1},
}
SMOOTHING: Rows = {
    "label smoothing 0.3": {"sources": (), "label_smoothing": 0.3},
    "label smoothing 0.3, weight 0.1": {"label_smoothing": 0.3, "weight": 0.1},
}
GENERALIZED: Rows = {
    "generalized cross entropy, q 0.7": {"sources": (), "generalized": 0.7},
    "generalized cross entropy, q 0.7, weight 0.1": {"generalized": 0.7, "weight": 0.1},
}
SMOOTHED = _confirmation("wrong-30-smoothing", 0.1, MORE_STEPS, (*CONFIRMED, *REPLICATED))
BEST = _confirmation(
    "wrong-30-generalized", 0.1, {**MORE_STEPS, **FEWER_STEPS}, (*CONFIRMED, *REPLICATED)
)
EXPLAINED = {"gains": ("wrong-30-smoothing-both", "weight 0.1"), "loses": ("weights", "weight 1")}
"""Table and row of a gain and of a loss, which docs/effects.md explains."""
REGIMES = {
    "baseline": Table(
        "Cross entropy alone with the pretrained network: rate, weight decay and augmentation",
        replace(EMBEDDING, without="0001TP", sources=()),
        {
            "rate 0.001": {},
            "rate 0.0005": {"learning_rate": 0.0005},
            **{f"rate {rate:g}": {"learning_rate": rate} for rate in (0.002, 0.004, 0.008)},
            "rate 0.004, weight decay 0.05": {"learning_rate": 0.004, "weight_decay": 0.05},
            "rate 0.004, weight decay 0.2": {"learning_rate": 0.004, "weight_decay": 0.2},
            "rate 0.002, weight decay 0.05": {"learning_rate": 0.002, "weight_decay": 0.05},
            "rate 0.004, crops and colors": {"learning_rate": 0.004, "crops": True},
        },
        seeds=(0, 1),
        file="regimes.jsonl",
    ),
    **EMBEDDING_TABLES,
    **{name: _screening(name) for name in SCENARIOS},
    **{name: _screening(name, _by_weight([0.1])) for name in ONE_WEIGHT},
    "supervised-val": _confirmation("supervised", 0.1, MORE_STEPS),
    "larger-val": _confirmation("larger", 0.1, MORE_STEPS),
    # What gained beyond two standard errors in the table `options`.
    "options-val": replace(
        _confirmation("supervised", 0.1),
        rows={
            **ALONE,
            "temperature 0.07": {"weight": 0.1, "temperature": 0.07},
            "within each image": {"weight": 0.1, "sources": ("image",)},
        },
    ),
    # These are scores of the same runs.
    **{
        f"{name}-val": _confirmation(name, 0.1, MORE_STEPS)
        for name in ("new-sequence", *CORRUPTIONS)
    },
    "few-25-val": _confirmation("few-25", 0.01, MORE_STEPS),
    "new-sequence-tuned-val": _confirmation("new-sequence-tuned", 0.1),
    "self-training-val": _confirmation("self-training", 0.01),
    "wrong-10-val": _confirmation("wrong-10", 0.1, MORE_STEPS),
    # The second row was added after the first was seen.
    "wrong-30-val": _confirmation("wrong-30", 0.1, MORE_STEPS),
    "wrong-30-again": _confirmation("wrong-30", 0.1, seeds=REPLICATED),
    "wrong-30-smoothing-val": _confirmation("wrong-30-smoothing", 0.1, MORE_STEPS),
    "wrong-30-both": _confirmation("wrong-30", 0.1, seeds=(*CONFIRMED, *REPLICATED)),
    # Confirmation and replication of what gains beside label smoothing.
    "wrong-30-smoothing-both": SMOOTHED,
    "wrong-30-smoothing-again": replace(SMOOTHED, seeds=tuple(REPLICATED), rows=_by_weight([0.1])),
    # Whether a baseline made for wrong labels gains as much; after the regime was confirmed.
    "wrong-30-baseline": _screening(
        "wrong-30",
        {
            **ALONE,
            "weight 0.1": {"weight": 0.1},
            "label smoothing 0.1": {"sources": (), "label_smoothing": 0.1},
            "label smoothing 0.3": {"sources": (), "label_smoothing": 0.3},
            "rate 0.002": {"sources": (), "learning_rate": 0.002},
            "600 steps": {"sources": (), "steps": 600},
            "600 steps, weight 0.1": {"steps": 600, "weight": 0.1},
            # Added when the regime and label smoothing had been confirmed.
            "label smoothing 0.5": {"sources": (), "label_smoothing": 0.5},
            "200 steps": {"sources": (), "steps": 200},
            **{
                f"generalized cross entropy, q {q:g}": {"sources": (), "generalized": q}
                for q in (0.3, 0.7)
            },
        },
    ),
    "wrong-30-generalized-val": _confirmation("wrong-30-generalized", 0.1, MORE_STEPS),
    # What gains against the best baseline, on the sequence that was left out: confirmation and
    # replication. Eight of its pairs had been seen when the replication was declared.
    "best": replace(BEST, scored="other"),
    "best-again": replace(BEST, scored="other", seeds=tuple(REPLICATED)),
    "best-val": BEST,
    # Against the length that is better for cross entropy there.
    "best-shorter": replace(BEST, rows={**FEWER_STEPS, "300 steps, weight 0.1": {"weight": 0.1}}),
    "wrong-30-length": _screening(
        "wrong-30-generalized",
        {"300 steps": {"sources": ()}, "200 steps": {"sources": (), "steps": 200}},
    ),
    "wrong-30-losses": replace(
        _confirmation("wrong-30", 0.1),
        rows={**ALONE, "weight 0.1": {"weight": 0.1}, **SMOOTHING, **GENERALIZED},
    ),
    # Of an earlier screening, before the rate was tuned.
    **{
        f"{name}-low-rate": _screening(name, rate=0.001)
        for name in ("supervised", "new-sequence", *CORRUPTIONS, "few-25", "wrong-30")
    },
    "pretraining": _screening("few-25", {**ALONE, **PRETRAINING}),
    "pretraining-scratch": _screening(
        "few-25", {**_by_weight([0.1]), **PRETRAINING}, network="lite0 from scratch"
    ),
    "sgd-rate": Table(
        "Cross entropy alone under SGD with the paper's schedule and weight decay",
        replace(EMBEDDING, without="0001TP", sources=(), **PAPERS_OPTIMIZER),
        {f"SGD, {rate:g}": {"learning_rate": rate} for rate in (0.01, 0.03, 0.1, 0.3)},
        seeds=(0, 1),
        file="regimes.jsonl",
    ),
    "weights": _screening("supervised", _by_weight((0.03, 0.3, 1.0))),
    "options": _screening(
        "supervised",
        {
            **ALONE,
            "temperature 0.07": {"temperature": 0.07},
            "temperature 0.3": {"temperature": 0.3},
            "both banks": {**BANK, "pixels_per_region": 128},
            "a bank of regions": {
                "sources": ("batch", "regions"),
                **BANK,
                "pixels_per_region": 128,
            },
            "within each image": {"sources": ("image",)},
            "semi-hard": {"negatives": "semi-hard"},
            "random anchors": {"anchors": "random"},
            "at the map of 1/16": {"layer": "1/16"},
        },
        weight=0.1,
    ),
    "gpu-pretrained": Table(
        "360×480 with the pretrained network, on a GPU",
        replace(TUNED, size=(360, 480), steps=1500, weight=0.1, without="0006R0"),
        {**ALONE, "the batch": {}, "the batch, both banks": {**BANK, "pixels_per_region": 128}},
        seeds=(200, 201, 202, 203, 204),
        split="val",
        file="regimes.jsonl",
    ),
    "class-weights": _screening(
        "supervised",
        {
            **ALONE,
            "class weights": {"sources": (), "class_weights": True},
            "weight 0.1": {"weight": 0.1},
            "weight 0.1, balanced anchors": {"weight": 0.1, **BALANCED},
            "class weights, weight 0.1": {"class_weights": True, "weight": 0.1},
            "class weights, weight 0.1, balanced anchors": {
                "class_weights": True,
                "weight": 0.1,
                **BALANCED,
            },
        },
    ),
}
