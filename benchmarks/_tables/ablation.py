"""Tables of an ablation: paired differences, and how the runs behaved during training."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks._tables.pairs import Compared, compare
from benchmarks._tables.text import TextTable, signed
from benchmarks._training.protocol import Row, Table
from benchmarks._training.runs import Run, Runs

HEADINGS = ("", "mean IoU", "difference", "positive", "pairs", "gradient ratio", "seconds a run")
MOMENTS = (0, 4, 9)
"""Indices of the samples after a tenth of a run, after half of it, and at its end."""
READINGS = ("positive_similarity", "negative_similarity", "hard_share", "bank_occupancy")


@dataclass(frozen=True)
class Line:
    """A row compared with the first one over the seeds that both have run; NaN without data.

    Attributes:
        name: of the row.
        compared: mean IoU of both in percent, and the difference of the pairs.
        differences: in percent, one of each seed.
        ratio: median of the gradient ratios of all runs of the row.
        seconds: median time of a run.
    """

    name: str
    compared: Compared
    differences: list[float]
    ratio: float
    seconds: float


def lines_of(table: Table, runs: Runs) -> list[Line]:
    """Compare every row with the first one, using the runs that are finished."""
    return [_compare_row(table, row, runs) for row in table.rows]


def ablation_table(table: Table, runs: Runs) -> TextTable:
    """Tabulate the differences of a table."""
    return TextTable(HEADINGS, [_cells(line) for line in lines_of(table, runs)])


def readings_table(table: Table, runs: Runs) -> TextTable:
    """Tabulate the statistics during training: means over seeds at three moments of the run."""
    rows: list[list[str]] = []
    for row, line in zip(table.rows, lines_of(table, runs), strict=True):
        own = _runs_of(table, row, runs)
        if not own or not own[0].ratios:
            continue
        series = [[run.ratios for run in own], *(_series(own, name) for name in READINGS)]
        difference = signed(line.compared.difference, line.compared.standard_error)
        rows.append([row.name, difference, *map(_over_time, series)])
    names = (name.replace("_", " ") for name in READINGS)
    return TextTable(("", "difference", "gradient ratio", *names), rows)


def _runs_of(table: Table, row: Row, runs: Runs) -> list[Run]:
    keys = [table.key(row, seed) for seed in table.seeds]
    return [runs[key] for key in keys if key in runs]


def _compare_row(table: Table, row: Row, runs: Runs) -> Line:
    ious: tuple[list[float], list[float]] = ([], [])
    for seed in table.seeds:
        keys = table.key(table.rows[0], seed), table.key(row, seed)
        if all(key in runs for key in keys):
            for values, key in zip(ious, keys, strict=True):
                values.append(100 * runs[key].measured.mean_iou)
    own = _runs_of(table, row, runs)
    compared = Compared(math.nan, math.nan, math.nan, math.nan)
    if ious[0]:
        compared = compare(*ious)
    elif own:
        mean = fmean(100 * run.measured.mean_iou for run in own)
        compared = compared._replace(contrast=mean)
    ratios = [ratio for run in own for ratio in run.ratios if math.isfinite(ratio)]
    return Line(
        name=row.name,
        compared=compared,
        differences=[after - before for before, after in zip(*ious, strict=True)],
        ratio=median(ratios) if ratios else math.nan,
        seconds=median(run.seconds for run in own) if own else math.nan,
    )


def _cells(line: Line) -> list[str]:
    compared, pairs = line.compared, len(line.differences)
    if math.isnan(compared.contrast):
        return [line.name, "not run", *[""] * (len(HEADINGS) - 2)]
    is_first = not any(line.differences)
    positive = sum(difference > 0 for difference in line.differences)
    return [
        line.name,
        f"{compared.contrast:.2f}",
        "" if is_first else signed(compared.difference, compared.standard_error),
        "" if is_first else f"{positive} of {pairs}",
        str(pairs),
        "" if math.isnan(line.ratio) else f"{line.ratio:.2f}",
        f"{line.seconds:.0f}",
    ]


def _series(runs: Iterable[Run], name: str) -> list[list[float]]:
    """Collect a statistic of each run; runs of older versions of the loss do not have it."""
    having = [run for run in runs if run.stats and name in run.stats[0]]
    return [[stats[name] for stats in run.stats] for run in having]


def _over_time(series: list[list[float]]) -> str:
    if not series:
        return ""
    means = [fmean(values[moment] for values in series) for moment in MOMENTS]
    if not any(means):
        return ""
    return ", ".join("–" if math.isnan(mean) else f"{mean:.2f}" for mean in means)
