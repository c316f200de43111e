"""Which cases the hot path has on a GPU, in the order in which a budget is spent on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.gpu_ways import MODES, Case

ANCHORS = (1024, 4096, 16384)
ENTRIES = (None, 190_000, 1_000_000)
DIMS = (64, 128, 256)
HEADLINES = (
    ("bf16", 1024, 190_000, 256),
    ("bf16", 1024, 190_000, 64),
    ("bf16", 4096, 190_000, 256),
    ("bf16", 16384, None, 256),
    ("tf32", 1024, 190_000, 256),
    ("float32", 1024, 190_000, 256),
)
"""The cases that claims are made of: the first, with every way, whatever the budget."""
CaseShape = tuple[int, int | None, int, int]

NO_DEVICE = "no CUDA device here"
REFUSED = 2
DEVICE_LOST = 3
"""The exit status where the device answers no more: what is left needs a new process."""


def choose_cases(shapes: Sequence[CaseShape] | None, modes: Sequence[str]) -> dict[Case, bool]:
    """The cases in order, and whether each is a headline: those that were asked for all are."""
    if shapes is not None:
        return {Case(mode, *shape): True for mode in modes for shape in shapes}
    headlines = [Case(*headline) for headline in HEADLINES if headline[0] in modes]
    everything = [
        Case(mode, anchors, entries, dim)
        for mode in MODES
        if mode in modes
        for anchors in ANCHORS
        for entries in ENTRIES
        for dim in DIMS
    ]
    # The cheap ones first: a budget that ends early then ends in the few largest.
    everything.sort(key=lambda case: case.similarities * case.dim)
    return {case: case in headlines for case in [*headlines, *everything]}


def parse_case_shape(text: str) -> CaseShape:
    """MxNxD or MxNxDxC, where N may be `itself`."""
    parts = text.split("x")
    try:
        anchors, dim = int(parts[0]), int(parts[2])
        entries = None if parts[1] == "itself" else int(parts[1])
        (classes,) = (int(part) for part in parts[3:]) if len(parts) > 3 else (19,)
    except (IndexError, ValueError):
        raise argparse.ArgumentTypeError(
            f"expected MxNxD or MxNxDxC, N a number or itself, not {text!r}"
        ) from None
    return anchors, entries, dim, classes
