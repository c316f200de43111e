"""Write the tables of the documentation from the committed results.

    python -m benchmarks.pages

A table is the text between `<!-- table: KIND NAME -->` and `<!-- end -->`. The command replaces it,
so that no figure of a table is typed; a test compares the pages with the results.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._tables import embedding
from benchmarks._tables.pairs import (
    ablation_table,
    classes_table,
    measures_table,
    readings_table,
    regimes_table,
)
from benchmarks._tables.text import TextTable
from benchmarks._training.protocol import TABLES
from benchmarks._training.regimes import EXPLAINED, SCENARIOS
from benchmarks._training.runs import load_runs
from benchmarks._training.table import Table
from benchmarks.ablation import COMMITTED
from benchmarks.price import REFERENCE, price_table
from benchmarks.ranks import ranks_table

ROOT = Path(__file__).parents[1]
PAGE_NAMES = (
    "effects.md",
    "embedding.md",
    "experiment-tables.md",
    "experiments.md",
    "reading.md",
    "scale.md",
)
PAGES = tuple(ROOT / "docs" / name for name in PAGE_NAMES)
RESULTS = COMMITTED.parent
LARGER, LARGER_TUNING = TABLES["embedding-larger-val"], TABLES["embedding-larger"]
TABLE = re.compile(r"(<!-- table: (\w+) ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the tables of every page."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{page.relative_to(ROOT)} written")


def filled(text: str) -> str:
    """Return a page with its tables made from the results."""

    def replace(found: re.Match[str]) -> str:
        return f"{found[1]}\n{KINDS[found[2]](found[3]).markdown()}\n\n{found[4]}"

    return TABLE.sub(replace, text)


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def runs_file(name: str) -> Path:
    """Return the file of a table that was measured apart from the others, or that of the others."""
    apart = RESULTS / f"ablation-{name}.jsonl"
    return apart if apart.is_file() else RESULTS / TABLES[name].file


def _named(suffix: str) -> list[Table]:
    """Return the tables of the regimes that end so, or those of screening."""
    names = [name if suffix == "screening" else f"{name}-{suffix}" for name in SCENARIOS]
    return [TABLES[name] for name in names if name in TABLES]


def _measures(name: str, row: str) -> TextTable:
    return measures_table(TABLES[name], row, load_runs(runs_file(name)))


def _other(table: Table) -> Table:
    """Return a table of the same runs, scored on the sequence that was left out."""
    return replace(table, scored="other")


def _price_of_contrast() -> float:
    """Return the time of a step of the pretrained network with contrast, relative to without."""
    (row,) = (row for row in _record("price")["rows"] if row["network"] == "lite0")
    ratio: float = row["measured"]["the batch"][f"to_{REFERENCE}"]
    return ratio


def _regimes(tables: list[Table]) -> TextTable:
    return regimes_table(tables, load_runs(runs_file("supervised")), _price_of_contrast())


def _main_scores(name: str, table: Table, tuning: Table) -> TextTable:
    runs = load_runs(runs_file("embedding"))
    return embedding.study_table(name, runs, table, embedding.HEADLINES, tuning)


def _rows(name: str, layer: str = "") -> TextTable:
    table, _, scene = name.rpartition("-")
    return embedding.rows_table(table, scene, load_runs(runs_file(table)), layer)


KINDS: dict[str, Callable[[str], TextTable]] = {
    "ablation": lambda name: ablation_table(TABLES[name], load_runs(runs_file(name))),
    "regimes": lambda name: _regimes(_named(name)),
    "ablation_other": lambda name: ablation_table(_other(TABLES[name]), load_runs(runs_file(name))),
    "regimes_other": lambda name: _regimes(
        [_other(table) for table in _named(name) if table.scored == "heldout"]
    ),
    "reading": lambda name: readings_table(TABLES[name], load_runs(runs_file(name))),
    "measures": lambda name: _measures(*EXPLAINED[name]),
    "classes": lambda name: classes_table(TABLES[name], load_runs(runs_file(name))),
    "study": lambda name: embedding.study_table(name, load_runs(runs_file("embedding"))),
    "pairs": lambda name: _main_scores(name, TABLES["embedding"], embedding.TUNING),
    "layers": lambda scene: embedding.layers_table(scene, load_runs(runs_file("embedding"))),
    "splits": lambda name: embedding.splits_table(name, load_runs(runs_file("embedding"))),
    "larger": lambda name: _main_scores(name, LARGER, LARGER_TUNING),
    "larger_lower": lambda name: _main_scores(
        name, TABLES["embedding-larger-lower"], LARGER_TUNING
    ),
    "larger_splits": lambda name: embedding.splits_table(
        name, load_runs(runs_file("embedding")), LARGER, LARGER_TUNING
    ),
    "rows": _rows,
    "decoder": lambda name: _rows(name, "decoder"),
    "price": lambda name: price_table(_record(name)["rows"]),
    "ranks": lambda name: ranks_table(_record(name)["losses"]),
}


if __name__ == "__main__":
    main()
