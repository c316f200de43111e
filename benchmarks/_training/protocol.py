"""The tables of the ablation: rows of options, with the images and seeds they are run on.

The protocol is described in docs/experiments.md and was written down before the runs: options are
chosen on held-out training images (`"tuning"`), and val is used for what has been chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks._training.data import CORRUPTIONS
from benchmarks._training.recipe import RECIPES, Recipe
from benchmarks._training.runs import Key

TUNING_SEEDS = (0, 1, 2, 3, 4)
FRESH_SEEDS = (100, 101, 102, 103, 104, 105, 106, 107)
"""Seeds on which no option was chosen."""


Rows = dict[str, dict[str, Any]]
"""Names of the rows of a table, each with the changes it makes to the table's recipe."""
ALONE: Rows = {"cross entropy alone": {"sources": ()}}


@dataclass(frozen=True)
class Table:
    """Rows that are compared with the first one, seed by seed.

    With `class_splits`, seed i leaves the classes of split i (modulo their number) out of training.
    `file` holds the runs, and `scored` names the images whose mean IoU is compared: the held-out
    ones, those of the `"other"` sequence, or a corruption of the held-out ones.
    """

    title: str
    base: Recipe
    rows: Rows
    seeds: tuple[int, ...] = TUNING_SEEDS
    split: str = "tuning"
    data: str = "camvid"
    class_splits: tuple[tuple[str, ...], ...] = ((),)
    file: str = "ablation.jsonl"
    scored: str = "heldout"

    def key(self, row: str, seed: int) -> Key:
        """Return the key of a row's run.

        Equivalent recipes are written in one form, so that one run serves every table that has it.
        """
        left_out = self.class_splits[seed % len(self.class_splits)]
        recipe = replace(self.base, **self.rows[row], seeds=1, left_out=left_out)
        if not recipe.has_contrast:
            recipe = replace(recipe, weight=0.0, bank=0, warmup=0.0, fade=0.0)
        elif recipe.sources is None:
            sources = ("batch", "pixels", "regions") if recipe.bank > 0 else ("batch",)
            recipe = replace(recipe, sources=sources)
        return Key(self.data, self.split, recipe, seed)

    def keys(self) -> Iterator[Key]:
        """Yield the keys of all runs, seed by seed, so that unfinished tables have pairs."""
        for seed in self.seeds:
            for row in self.rows:
                yield self.key(row, seed)

    def name_of(self, key: Key) -> str:
        """Return the name of the row that a run belongs to."""
        return next(row for row in self.rows if self.key(row, key.seed) == key)


SGD = replace(RECIPES["camvid"], steps=500)
BANK: dict[str, Any] = {"bank": 100, "pixels_per_image": 2}
ADAMW = replace(SGD, optimizer="adamw", learning_rate=0.002, weight_decay=0.01, schedule="cosine")
LARGE = replace(
    SGD,
    size=(360, 480),
    steps=1500,
    network="large",
    dim=256,
    learning_rate=0.1,
    max_anchors=2048,
    max_views=32,
)

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

CHOSEN: dict[str, Any] = {"sources": ("batch",)}
"""The choice of the table `small`."""


def _sweep(option: str, values: tuple[Any, ...]) -> Rows:
    """Make rows for cross entropy alone and for every value of one option."""
    return {**ALONE, **{f"{option} {value}": {option: value} for value in values}}


def pair_table(data: str, split: str, recipe: Recipe, seeds: int) -> Table:
    """Make the table of `benchmarks.segmentation`: a recipe, without and with its contrast."""
    rows: Rows = {**ALONE, "with contrast": {}}
    return Table(f"{data}, {seeds} paired seeds", recipe, rows, tuple(range(seeds)), split, data)


def _strong(title: str, **changes: Any) -> Table:
    """Compare contrast with the strong baseline after a change to both."""
    return Table(
        title,
        replace(ADAMW, weight=0.03, **changes),
        {**ALONE, "weight 0.03": {}},
        seeds=(0, 1, 2),
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


TABLES = {
    "small": Table(
        "What to contrast with",
        SGD,
        {
            **ALONE,
            "the batch": {"sources": ("batch",)},
            "the batch, a bank of pixels": {"sources": ("batch", "pixels"), **BANK},
            "the batch, a bank of regions": {"sources": ("batch", "regions"), **BANK},
            "the batch, both banks": {"sources": ("batch", "pixels", "regions"), **BANK},
        },
    ),
    "anchors": Table("Which pixels are anchors", SGD, _sweep("anchors", ("random", "hard"))),
    "temperature": Table(
        "Temperature (the factor τ/0.07 keeps the size of the gradient)",
        SGD,
        _sweep("temperature", (0.05, 0.07, 0.1, 0.2, 0.3, 0.4)),
    ),
    "weight": Table("Weight", SGD, _sweep("weight", (0.01, 0.03, 0.1, 0.3, 1.0))),
    "denominator": Table("Denominator", SGD, _sweep("denominator", ("negatives", "all"))),
    "projection": Table(
        "Projection head", SGD, _sweep("projection", ("mlp", "mlp without norm", "linear"))
    ),
    "samples": Table(
        "What the head projects",
        SGD,
        {**ALONE, "every pixel": {}, "the sampled pixels": {"projected": "samples"}},
        seeds=(0, 1, 2),
    ),
    "recipe": Table(
        "The recipe to start from, on val",
        SGD,
        {**ALONE, "the recipe": CHOSEN},
        seeds=FRESH_SEEDS,
        split="val",
    ),
    "rate": Table(
        "The learning rate of the strong baseline",
        replace(ADAMW, sources=()),
        {f"AdamW, {rate:g}": {"learning_rate": rate} for rate in (0.002, 0.005, 0.01, 0.02)},
        seeds=(0, 1),
    ),
    "strong": Table(
        "Contrast against the strong baseline",
        ADAMW,
        {
            **_sweep("weight", (0.01, 0.03, 0.1)),
            "weight 0.03, falls to 0 over the whole run": {"weight": 0.03, "fade": 1.0},
            "weight 0.03, both banks": {"weight": 0.03, **BANK},
        },
        seeds=(0, 1, 2),
    ),
    "why": Table(
        "Why nothing is gained there: projection and views",
        replace(ADAMW, weight=0.03),
        {
            **ALONE,
            "mlp, 6 views": {},
            "mlp without norm": {"projection": "mlp without norm"},
            "linear": {"projection": "linear"},
            "1 view": {"max_views": 1},
            "2 views": {"max_views": 2},
            "32 views": {"max_views": 32, "max_anchors": 4096},
        },
        seeds=(0, 1, 2),
    ),
    "lower-rate": _strong("At half the learning rate", learning_rate=0.001),
    "resolution": _strong("At twice the resolution", size=(144, 192)),
    "reading": Table(
        "The embedded digits, by weight",
        RECIPES["digits"],
        _sweep("weight", (0.003, 0.03, 0.1)),
        seeds=(0, 1, 2),
        data="digits",
    ),
    "digits": pair_table("digits", "val", RECIPES["digits"], 10),
    "camvid": pair_table("camvid", "val", RECIPES["camvid"], 5),
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
    "gpu": Table(
        "360×480, 6.7 million parameters, on a GPU",
        LARGE,
        {
            **ALONE,
            "the batch": {"sources": ("batch",)},
            "the batch, both banks": {"bank": 500, "pixels_per_image": 10},
        },
        seeds=FRESH_SEEDS[:5],
        split="val",
    ),
}
