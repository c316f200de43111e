"""What the runs of a table said of themselves while they trained, for docs/reading.md."""

import math
from collections.abc import Iterable
from statistics import fmean

from benchmarks._tables.ablation import Runs, lines_of
from benchmarks._tables.text import markdown_table, signed
from benchmarks._training.protocol import Table
from benchmarks._training.runs import Run

MOMENTS = (0, 4, 9)
"""After a tenth of the run, after half of it, and at its end."""
READINGS = ("positive_similarity", "negative_similarity", "hard_share", "bank_occupancy")
HEADINGS = (
    "",
    "difference",
    "gradient ratio",
    "positive similarity",
    "negative similarity",
    "hard share",
    "bank occupancy",
)


def markdown_readings(table: Table, runs: Runs) -> str:
    """A row for every row with contrast; means over its seeds, at the three moments."""
    rows: list[list[str]] = []
    for row, line in zip(table.rows, lines_of(table, runs), strict=True):
        own = [runs[key] for seed in table.seeds if (key := table.key(row, seed)) in runs]
        if not own or not own[0].ratios:
            continue
        ratios = _over_time([run.ratios for run in own])
        found = [_over_time(_series(own, name)) for name in READINGS]
        difference = signed(line.compared.difference, line.compared.standard_error)
        rows.append([row.name, difference, ratios, *found])
    return markdown_table(HEADINGS, rows)


def _series(runs: Iterable[Run], name: str) -> list[list[float]]:
    """What was noted of each run; a run from before the loss said so has nothing."""
    noted = [run for run in runs if run.stats and name in run.stats[0]]
    return [[stats[name] for stats in run.stats] for run in noted]


def _over_time(series: list[list[float]]) -> str:
    if not series:
        return ""
    means = [fmean(values[moment] for values in series) for moment in MOMENTS]
    if not any(means):
        return ""
    return ", ".join("–" if math.isnan(mean) else f"{mean:.2f}" for mean in means)
