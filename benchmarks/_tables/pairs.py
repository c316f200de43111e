"""Tables of paired runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import NamedTuple

import numpy as np

from benchmarks._tables.text import TextTable, number, signed
from benchmarks._training.experiment import CLASSES
from benchmarks._training.runs import Run, Runs
from benchmarks._training.table import Table

ABLATION = ("", "mean IoU", "difference", "positive", "pairs", "gradient ratio", "seconds a run")
COMPARISON = (
    *("regime", "row", "without contrast", "difference", "positive", "pairs", "time"),
    "gradient ratio",
)
MOMENTS = (0, 4, 9)
"""Indices of the samples after a tenth of a run, after half of it, and at its end."""
READINGS = ("positive_similarity", "negative_similarity", "hard_share", "bank_occupancy")


class Compared(NamedTuple):
    """A figure of both arms, averaged over seeds, and the mean difference of the pairs."""

    plain: float
    contrast: float
    difference: float
    standard_error: float


def compare(plain: Sequence[float], contrast: Sequence[float]) -> Compared:
    """Compare one figure of both arms; element i of both sequences is a pair."""
    differences = [with_it - without for with_it, without in zip(contrast, plain, strict=True)]
    # np.std propagates NaN, the IoU of a class without held-out pixels; statistics.stdev raises.
    error = math.nan
    if len(differences) > 1:
        error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return Compared(fmean(plain), fmean(contrast), fmean(differences), error)


class Line(NamedTuple):
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
    first, lines = runs_of(table, next(iter(table.rows)), runs), []
    for row in table.rows:
        own = runs_of(table, row, runs)
        ious = [[mean_iou(table, of[seed]) for seed in first if seed in own] for of in (first, own)]
        compared = Compared(math.nan, math.nan, math.nan, math.nan)
        if ious[0]:
            compared = compare(*ious)
        elif own:
            mean = fmean(mean_iou(table, run) for run in own.values())
            compared = compared._replace(contrast=mean)
        differences = [after - before for before, after in zip(*ious, strict=True)]
        ratios = [ratio for run in own.values() for ratio in run["ratios"]]
        ratios = [ratio for ratio in ratios if math.isfinite(ratio)] or [math.nan]
        seconds = [run["seconds"] for run in own.values()] or [math.nan]
        lines.append(Line(row, compared, differences, median(ratios), median(seconds)))
    return lines


def mean_iou(table: Table, run: Run) -> float:
    """Return the mean IoU of a run in percent, on the images that the table compares."""
    measured = run["measured"]
    found: float = (measured if table.scored == "heldout" else measured[table.scored])["mean_iou"]
    return 100 * found


def regimes_table(tables: Iterable[Table], runs: Runs, price: float) -> TextTable:
    """Tabulate every row of several tables, each beside the cross entropy of its table.

    `price` is the time of a step with contrast relative to one without. The gradient ratio is that
    after a tenth of a run, after half of it and at its end.
    """
    rows = []
    for table in tables:
        first, *lines = lines_of(table, runs)
        of_first = table.key(first.name, 0).recipe
        for line in lines:
            if not line.differences:
                continue
            recipe = table.key(line.name, 0).recipe
            time = recipe.steps / of_first.steps * (price if recipe.has_contrast else 1.0)
            difference = signed(line.compared.difference, line.compared.standard_error)
            cells = [f"{line.compared.plain:.2f}", difference, *_counts(line.differences)]
            ratios = [run["ratios"] for run in runs_of(table, line.name, runs).values()]
            over_time = _over_time(ratios) if recipe.has_contrast else ""
            rows.append([table.title, line.name, *cells, f"{time:.2f}", over_time])
    return TextTable(COMPARISON, rows)


def _counts(differences: list[float]) -> list[str]:
    """Format the number of positive pairs, and that of all."""
    pairs = len(differences)
    return [f"{sum(difference > 0 for difference in differences)} of {pairs}", str(pairs)]


def ablation_table(table: Table, runs: Runs) -> TextTable:
    """Tabulate the differences of a table."""
    rows = []
    for line in lines_of(table, runs):
        compared = line.compared
        if math.isnan(compared.contrast):
            rows.append([line.name, "not run", *[""] * (len(ABLATION) - 2)])
            continue
        is_first = not any(line.differences)
        positive, pairs = _counts(line.differences)
        cells = [
            f"{compared.contrast:.2f}",
            "" if is_first else signed(compared.difference, compared.standard_error),
            "" if is_first else positive,
            pairs,
            "" if math.isnan(line.ratio) else f"{line.ratio:.2f}",
            f"{line.seconds:.0f}",
        ]
        rows.append([line.name, *cells])
    return TextTable(ABLATION, rows)


def readings_table(table: Table, runs: Runs) -> TextTable:
    """Tabulate the statistics during training: means over seeds at three moments of the run."""
    rows = []
    for row, line in zip(table.rows, lines_of(table, runs), strict=True):
        own = list(runs_of(table, row, runs).values())
        if not own or not own[0]["ratios"]:
            continue
        cells = [_over_time([run["ratios"] for run in own])]
        for name in READINGS:
            # Runs of older versions of the loss lack some statistics.
            stats = [run["stats"] for run in own if run["stats"] and name in run["stats"][0]]
            cells.append(_over_time([[moment[name] for moment in one] for one in stats]))
        difference = signed(line.compared.difference, line.compared.standard_error)
        rows.append([row, difference, *cells])
    names = (name.replace("_", " ") for name in READINGS)
    return TextTable(("", "difference", "gradient ratio", *names), rows)


def runs_of(table: Table, row: str, runs: Runs) -> dict[int, Run]:
    """Return the finished runs of a row by seed."""
    keys = {seed: table.key(row, seed) for seed in table.seeds}
    return {seed: runs[key] for seed, key in keys.items() if key in runs}


def _over_time(series: list[list[float]]) -> str:
    """Format the means of a statistic at the three moments; nothing where it is always 0."""
    means = [fmean(values[moment] for values in series) for moment in MOMENTS] if series else []
    return ", ".join(number(mean) for mean in means) if any(means) else ""


def pairs_of(table: Table, row: str, runs: Runs) -> list[tuple[Run, Run]]:
    """Return the measurements of the first row and of another, for the seeds that both have."""
    first, last = (runs_of(table, one, runs) for one in (next(iter(table.rows)), row))
    return [(first[seed]["measured"], last[seed]["measured"]) for seed in first if seed in last]


def class_differences(table: Table, row: str, runs: Runs) -> list[Compared]:
    """Compare a row with the first one: IoU of each class in percent."""
    pairs = pairs_of(table, row, runs)
    return [
        compare(*([100 * pair[arm]["class_iou"][index] for pair in pairs] for arm in (0, 1)))
        for index in range(len(CLASSES[table.data]))
    ]


MEASURES = {
    "within": "similarity within a class",
    "between": "similarity between classes",
    "calibration_error": "calibration error",
    "border_accuracy": "accuracy near borders",
    "interior_accuracy": "accuracy elsewhere",
}


def measures_table(table: Table, row: str, runs: Runs) -> TextTable:
    """Compare a row with the first one: what else is measured, in percent."""
    # Older runs lack these measures.
    pairs = [pair for pair in pairs_of(table, row, runs) if all("within" in one for one in pair)]
    rows = []
    for name, title in MEASURES.items():
        found = compare(*([100 * pair[arm][name] for pair in pairs] for arm in (0, 1)))
        difference = signed(found.difference, found.standard_error)
        rows.append([title, number(found.plain), number(found.contrast), difference])
    title = f"{table.title}, {len(pairs)} pairs"
    return TextTable((title, next(iter(table.rows)), row, "difference"), rows)


def classes_table(table: Table, runs: Runs) -> TextTable:
    """Tabulate the IoU of the classes: of the first row, and the differences of the others."""
    first, *others = table.rows
    others = [row for row in others if pairs_of(table, row, runs)]
    found = [class_differences(table, row, runs) for row in others]
    rows = [
        [name, number(of_class[0].plain), *(_difference(one) for one in of_class)]
        for name, of_class in zip(CLASSES[table.data], zip(*found, strict=True), strict=True)
    ]
    return TextTable(("", first, *others), rows)


def _difference(found: Compared) -> str:
    """Format a difference; empty for a class without held-out pixels."""
    is_absent = math.isnan(found.difference)
    return "" if is_absent else signed(found.difference, found.standard_error)
