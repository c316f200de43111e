"""The cases of the hot path, in the order in which a budget is spent on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.problem import MODES, Case

CPU_CASES = (
    Case("float32", 975, 19_000, 256),
    Case("float32", 975, 47_500, 256),
    Case("float32", 975, 95_000, 256),
    Case("float32", 975, 190_000, 256),
    Case("float32", 975, 475_000, 256),
    Case("float32", 975, 1_000_000, 256),
    Case("float32", 244, 47_500, 256),
    Case("float32", 488, 47_500, 256),
    Case("float32", 1950, 47_500, 256),
    Case("float32", 512, 100_000, 128),
)
HEADLINES = (
    Case("bf16", 1024, 190_000, 256),
    Case("bf16", 4096, 190_000, 256),
    Case("bf16", 1024, 190_000, 64),
    Case("bf16", 1024, 190_000, 128),
    Case("bf16", 16384, None, 256),
    Case("bf16", 1024, None, 256),
    Case("tf32", 1024, 190_000, 256),
    Case("float32", 1024, 190_000, 256),
)
"""The cases on CUDA that claims are made of: the first with every way, whatever the budget."""
ANCHORS = (1024, 4096, 16384)
ENTRIES = (None, 190_000, 1_000_000)
DIMS = (64, 128, 256)
REHEARSED = (Case("bf16", 40, 304, 16, 4), Case("bf16", 32, None, 16, 4))
REHEARSED_REST = (Case("tf32", 40, 304, 16, 4), Case("float32", 32, None, 16, 4))
STAGES = ("headlines", "rest")

CaseShape = tuple[int, int | None, int, int]


class Launched(NamedTuple):
    """What is launched on CUDA, for the kernels to be compiled in advance by `ways.launch`.

    Attributes:
        mode: a name of `MODES`, or "autocast": float32 anchors under autocast to bfloat16 against
            a bfloat16 bank, as in a step.
        dim: D.
        anchors: M.
        entries: N of each contrast tensor; None stands for the anchors themselves.
        form: "info_nce" as users call it, "unit length" as the losses call it, or "mined", the
            latter with the default `HardNegativeSampler`.
    """

    mode: str
    dim: int
    anchors: int
    entries: tuple[int | None, ...]
    form: str


def kernels_to_compile() -> list[Launched]:
    """Return what the headlines and the steps launch, each once, the most important first."""
    found = [
        Launched(case.mode, case.dim, case.anchors, (case.entries,), form)
        for case in HEADLINES
        for form in ("info_nce", "unit length")
    ]
    for name in STEP_SHAPES:
        shape = SHAPES[name]
        queues = (shape.num_classes * shape.slots,) * 2
        for entries, form in (
            (queues, "unit length"),
            ((None,), "unit length"),
            (queues, "mined"),
        ):
            found.append(Launched("autocast", shape.dim, shape.max_anchors, entries, form))
    return list(dict.fromkeys(found))


def choose_cases(
    shapes: Sequence[CaseShape] | None,
    modes: Sequence[str] | None,
    stage: str | None,
    device: str,
    rehearse: bool,
) -> dict[Case, bool]:
    """Return the cases in order, and whether each is a headline.

    Args:
        shapes: M, N, D and classes of each; all of them are headlines. None: those of the device.
        modes: which to measure. None: those of the device.
        stage: "headlines", "rest", or None for both.
        device: "cpu" or "cuda".
        rehearse: the tiny cases of both stages.
    """
    if shapes is not None:
        chosen = modes or (list(MODES) if device == "cuda" or rehearse else ["float32"])
        return {Case(mode, *shape): True for mode in chosen for shape in shapes}
    headlines: tuple[Case, ...]
    everything: tuple[Case, ...]
    if rehearse:
        headlines, everything = REHEARSED, REHEARSED_REST
    elif device == "cuda":
        headlines, everything = HEADLINES, _all_cases()
    else:
        headlines, everything = CPU_CASES, ()
    stages = {
        "headlines": headlines,
        "rest": [case for case in everything if case not in headlines],
    }
    return {
        case: name == "headlines"
        for name in STAGES
        for case in stages[name]
        if stage in (None, name) and (modes is None or case.mode in modes)
    }


def parse_case_shape(text: str) -> CaseShape:
    """Parse MxNxD or MxNxDxC, where N may be `itself`."""
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


def _all_cases() -> tuple[Case, ...]:
    """Return every combination, the cheap ones first: a budget then leaves out the largest."""
    cases = [
        Case(mode, anchors, entries, dim)
        for mode in MODES
        for anchors in ANCHORS
        for entries in ENTRIES
        for dim in DIMS
    ]
    return tuple(sorted(cases, key=lambda case: case.similarities * case.dim))
