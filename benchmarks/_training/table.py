"""A table of an experiment: rows of options, with the images and seeds they are run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks._training.recipe import Recipe
from benchmarks._training.runs import Key

TUNING_SEEDS = (0, 1, 2, 3, 4)
FRESH_SEEDS = (100, 101, 102, 103, 104, 105, 106, 107)
"""Seeds on which no option was chosen."""


Rows = dict[str, dict[str, Any]]
"""Names of the rows of a table, each with the changes it makes to the table's recipe."""
ALONE: Rows = {"cross entropy alone": {"sources": ()}}
WITHOUT: Rows = {"without contrast": {"sources": ()}}
"""The same row where both arms may have another loss than cross entropy."""


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


def sweep(option: str, values: tuple[Any, ...]) -> Rows:
    """Make rows for cross entropy alone and for every value of one option."""
    return {**ALONE, **{f"{option} {value}": {option: value} for value in values}}
