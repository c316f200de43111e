"""The tables of the ablation: rows of options, with the images and seeds they are run on.

The protocol is described in docs/experiments.md and was written down before the runs: options are
chosen on held-out training images (`"tuning"`), and val is used for what has been chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks._training.recipe import ADAMW, BANK, RECIPES, SGD, Recipe
from benchmarks._training.regimes import REGIMES
from benchmarks._training.table import ALONE, FRESH_SEEDS, Rows, Table, sweep

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

CHOSEN: dict[str, Any] = {"sources": ("batch",)}
"""The choice of the table `small`."""


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
    "anchors": Table("Which pixels are anchors", SGD, sweep("anchors", ("random", "hard"))),
    "temperature": Table(
        "Temperature (the factor τ/0.07 keeps the size of the gradient)",
        SGD,
        sweep("temperature", (0.05, 0.07, 0.1, 0.2, 0.3, 0.4)),
    ),
    "weight": Table("Weight", SGD, sweep("weight", (0.01, 0.03, 0.1, 0.3, 1.0))),
    "denominator": Table("Denominator", SGD, sweep("denominator", ("negatives", "all"))),
    "projection": Table(
        "Projection head", SGD, sweep("projection", ("mlp", "mlp without norm", "linear"))
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
            **sweep("weight", (0.01, 0.03, 0.1)),
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
        sweep("weight", (0.003, 0.03, 0.1)),
        seeds=(0, 1, 2),
        data="digits",
    ),
    "digits": pair_table("digits", "val", RECIPES["digits"], 10),
    "camvid": pair_table("camvid", "val", RECIPES["camvid"], 5),
    **REGIMES,
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
