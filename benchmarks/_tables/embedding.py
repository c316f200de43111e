"""Tables of the embedding study: cross entropy and contrast, each at its best.

The best row and variant (layer and transform) of a score are those with the largest mean on the
tuning table; the figures are those of the study, whose runs had no part in the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from benchmarks._tables.pairs import Compared, compare, mean_iou, runs_of
from benchmarks._tables.text import TextTable, number, signed
from benchmarks._training.embedding import SCORES
from benchmarks._training.protocol import TABLES
from benchmarks._training.runs import Runs
from benchmarks._training.table import Table

TUNING = TABLES["embedding-tuning"]
STUDY = replace(TABLES["embedding"], rows=TABLES["embedding"].rows | TABLES["embedding-lower"].rows)
HEADLINES = ("retrieval", "new mean 5", "all mean 5", "unknown")
NUM_SPLITS = len(STUDY.class_splits)
LAYERS = ("1/4", "1/8", "1/16", "1/32", "decoder", "logits", "projection")
NAMES = {"heldout": "known sequence", "other": "new sequence"}


class Best(NamedTuple):
    """The row and the variant that are best on the tuning table."""

    row: str
    variant: str


def values(
    table: Table,
    best: Best | None,
    scene: str,
    score: str,
    runs: Runs,
    seeds: Iterable[int] | None = None,
) -> dict[int, float]:
    """Return a score in percent by seed."""
    index = SCORES.index(score)
    if best is None:
        return {}
    return {
        seed: 100 * run["measured"]["embedding"][scene][best.variant][index]
        for seed, run in runs_of(table, best.row, runs).items()
        if seeds is None or seed in seeds
    }


def best_of(
    rows: Iterable[str],
    scene: str,
    score: str,
    runs: Runs,
    table: Table = TUNING,
    layer: str = "",
) -> Best | None:
    """Choose the row and the variant with the largest mean of a score; None without runs.

    `layer` limits the choice to the transforms of a layer.
    """
    means: dict[Best, float] = {}
    for row in rows:
        for run in runs_of(table, row, runs).values():
            for variant in run["measured"]["embedding"][scene]:
                means[Best(row, variant)] = math.nan
    for best in means:
        means[best] = fmean(values(table, best, scene, score, runs).values())
    known = (
        best for best in means if best.variant.startswith(layer) and not math.isnan(means[best])
    )
    return max(known, key=means.__getitem__, default=None)


def _arms(table: Table) -> tuple[list[str], list[str]]:
    """Return the rows of a table without contrast, and those with it."""
    has_contrast = {row: table.key(row, 0).recipe.has_contrast for row in table.rows}
    return [row for row in has_contrast if not has_contrast[row]], [
        row for row in has_contrast if has_contrast[row]
    ]


def _compared(plain: dict[int, float], contrast: dict[int, float]) -> tuple[str, str, list[str]]:
    """Return both means, and the cells of the difference of their pairs.

    The standard error is that of seeds, for these splits of the classes: with k splits, of which
    split j has n_j pairs with the variance s_j², it is √(Σ s_j² / n_j) / k.
    """
    seeds = [seed for seed in plain if seed in contrast]
    if not seeds:
        return "not run", "not run", ["", ""]
    splits = [[seed for seed in seeds if seed % NUM_SPLITS == split] for split in range(NUM_SPLITS)]
    errors = [_of_pairs(plain, contrast, split).standard_error for split in splits if split]
    found = _of_pairs(plain, contrast, seeds)
    positive = sum(contrast[seed] > plain[seed] for seed in seeds)
    difference = signed(found.difference, math.hypot(*errors) / len(errors))
    cells = [difference, f"{positive} of {len(seeds)}"]
    return number(found.plain), number(found.contrast), cells


def _of_pairs(plain: dict[int, float], contrast: dict[int, float], seeds: list[int]) -> Compared:
    return compare(*([arm[seed] for seed in seeds] for arm in (plain, contrast)))


def study_table(
    name: str,
    runs: Runs,
    table: Table = STUDY,
    scores: Sequence[str] = SCORES,
    tuning: Table = TUNING,
) -> TextTable:
    """Compare cross entropy and contrast, each at its best on `tuning` among the rows of a table.

    `name` is a scene, or a layer and a scene, as in `"decoder-other"`.
    """
    layer, _, scene = name.rpartition("-")
    rows = []
    for score in scores:
        bests = [best_of(arm, scene, score, runs, tuning, layer) for arm in _arms(table)]
        found = [values(table, best, scene, score, runs) for best in bests]
        plain, contrast, cells = _compared(*found)
        names = ["" if best is None else f"{best.row}: {best.variant}" for best in bests]
        rows.append([score, plain, names[0], contrast, names[1], *cells])
    arms = ("cross entropy", "its best on tuning", "contrast", "its best on tuning")
    return TextTable((NAMES[scene], *arms, "difference", "positive"), rows)


def splits_table(name: str, runs: Runs, table: Table = STUDY, tuning: Table = TUNING) -> TextTable:
    """Compare both at their best in the main scores, by the classes that are left out.

    `name` is that of a `study_table`.
    """
    layer, _, scene = name.rpartition("-")
    rows = []
    for index, classes in enumerate(table.class_splits):
        seeds = [seed for seed in table.seeds if seed % NUM_SPLITS == index]
        cells = []
        for score in HEADLINES:
            bests = (best_of(arm, scene, score, runs, tuning, layer) for arm in _arms(table))
            found = [values(table, best, scene, score, runs, seeds) for best in bests]
            cells.append(_compared(*found)[2][0])
        rows.append([", ".join(classes), *cells])
    return TextTable((f"left out, {NAMES[scene]}", *HEADLINES), rows)


def layers_table(scene: str, runs: Runs) -> TextTable:
    """Tabulate the main scores of every layer, without and with contrast.

    Each arm has its best row and transform on tuning.
    """
    rows = []
    for layer in LAYERS:
        for name, arm in zip(("cross entropy", "contrast"), _arms(STUDY), strict=True):
            rows.append([layer, name, *_headlines(arm, scene, runs, STUDY, TUNING, layer)])
    return TextTable((NAMES[scene], "", *HEADLINES), rows)


def rows_table(name: str, scene: str, runs: Runs, layer: str = "") -> TextTable:
    """Tabulate the main scores of every row of a table, each in its best variant.

    `layer` limits the variants to the transforms of a layer. The variants of the study are chosen
    on tuning, those of the other tables on the table itself.
    """
    table, chosen_on = (STUDY, TUNING) if name == "embedding" else (TABLES[name], TABLES[name])
    rows = []
    for row in table.rows:
        own = runs_of(table, row, runs).values()
        cells = _headlines([row], scene, runs, table, chosen_on, layer)
        ious = [mean_iou(replace(table, scored=scene), run) for run in own]
        rows.append([row, *cells, number(fmean(ious)) if ious else "not run", str(len(own))])
    return TextTable((NAMES[scene], *HEADLINES, "mean IoU", "runs"), rows)


def _headlines(
    rows: Sequence[str], scene: str, runs: Runs, table: Table, chosen_on: Table, layer: str
) -> list[str]:
    """Format the main scores of the rows' best row and variant, chosen on another table."""
    cells = []
    for score in HEADLINES:
        best = best_of(rows, scene, score, runs, chosen_on, layer)
        found = values(table, best, scene, score, runs)
        cells.append(number(fmean(found.values())) if found else "not run")
    return cells
