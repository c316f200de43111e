"""Tables and differences as text, for the documentation and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class TextTable(NamedTuple):
    """Headings and rows of cells."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Format the table for Markdown."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def aligned(self) -> str:
        """Format the table for a terminal: the first column is left-aligned, the others right."""
        lines = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in lines
        )


def signed(value: float, error: float = math.nan, digits: int = 2) -> str:
    """Format a difference with its sign, and with its standard error if there is one."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def number(value: float | None, digits: int = 2) -> str:
    """Format a number; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
