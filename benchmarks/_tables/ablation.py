"""What the runs of a table come to: paired differences, for a terminal and for the docs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks._tables.pairs import Compared, compare
from benchmarks._tables.text import markdown_table, signed
from benchmarks._training.protocol import Table
from benchmarks._training.runs import Key, Run

Runs = Mapping[Key, Run]
HEADINGS = (
    "",
    "mean IoU",
    "difference",
    "positive",
    "pairs",
    "gradient ratio",
    "seconds a run",
)


@dataclass(frozen=True)
class Line:
    """A row against the first one, over the seeds that both have run; NaN where there is none.

    Attributes:
        name: of the row.
        compared: mean IoU of both, in percent, and the difference of the pairs.
        differences: in percent, a seed each.
        ratio: the median of the gradient ratios of all its runs.
        seconds: of a run, the median.
    """

    name: str
    compared: Compared
    differences: list[float]
    ratio: float
    seconds: float


def lines_of(table: Table, runs: Runs) -> list[Line]:
    """A line for every row, with what there is of its runs."""
    return [_line(table, number, runs) for number in range(len(table.rows))]


def format_lines(table: Table, runs: Runs) -> str:
    """The table for a terminal."""
    lines = [table.title, ""]
    widths = (max(len(row.name) for row in table.rows) + 2, 9, 17, 10, 7, 16, 15)
    cells = [list(HEADINGS), *(_cells(line) for line in lines_of(table, runs))]
    for row in cells:
        first, *others = row
        padded = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"{first:<{widths[0]}}" + "".join(padded))
    return "\n".join(lines)


def markdown_lines(table: Table, runs: Runs) -> str:
    """The table for the docs."""
    return markdown_table(HEADINGS, [_cells(line) for line in lines_of(table, runs)])


def _line(table: Table, number: int, runs: Runs) -> Line:
    row, first = table.rows[number], table.rows[0]
    own = [runs[key] for seed in table.seeds if (key := table.key(row, seed)) in runs]
    pairs = [
        (runs[table.key(first, seed)], runs[table.key(row, seed)])
        for seed in table.seeds
        if table.key(first, seed) in runs and table.key(row, seed) in runs
    ]
    ratios = [ratio for run in own for ratio in run.ratios if math.isfinite(ratio)]
    nothing = Compared(math.nan, math.nan, math.nan, math.nan)
    plain, changed = ([100 * pair[arm].measured.mean_iou for pair in pairs] for arm in (0, 1))
    compared = compare(plain, changed) if pairs else nothing
    if own and not pairs:
        mean = fmean(100 * run.measured.mean_iou for run in own)
        compared = Compared(math.nan, mean, math.nan, math.nan)
    return Line(
        name=row.name,
        compared=compared,
        differences=[after - before for before, after in zip(plain, changed, strict=True)],
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
