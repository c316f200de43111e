"""Tables and figures as the docs write them."""

import math
from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def signed(value: float, error: float = math.nan, digits: int = 2) -> str:
    """A difference, with its standard error where there is one."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"
