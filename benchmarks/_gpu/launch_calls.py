"""The calls that make Triton and torch.compile compile what the next stages of a run launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks._gpu.smoke import all_checks
from benchmarks._gpu.smoke_products import Setting
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.cases import HEADLINES, Launched, kernels_to_compile
from benchmarks._ways.problem import Case, Problem
from benchmarks._ways.steps import CASES, StepCase
from benchmarks._ways.ways import COMPILED_WAYS, Means, compile_for_shape, launch, make_runs

Call = Callable[[], object]
SMALL = tuple(Launched("bf16", 16, 20, (40,), form) for form in ("info_nce", "unit length"))
"""The calls of a rehearsal. The interpreter compiles nothing, so two of them say enough."""


def launch_calls(rehearse: bool) -> dict[str, Call]:
    """Every call by its name, the most important ones first."""
    device = torch.device("cpu" if rehearse else "cuda")
    launches = SMALL if rehearse else _with_kernels_of_their_own(kernels_to_compile())
    calls: dict[str, Call] = {
        f"{one.mode}, D = {one.dim}, {one.entries}, {one.form}": partial(launch, one, device)
        for one in launches
    }
    if rehearse:
        return calls
    # torch.compile takes tens of seconds for one call: only for the cases that come first.
    first, *others = (
        {f"{way}, {case}": partial(_run_way, way, case, device) for way in COMPILED_WAYS}
        for case in HEADLINES[:3]
    )
    calls.update(first)
    for shape in STEP_SHAPES:
        for case in CASES:
            calls[f"step, {shape}, {case}"] = partial(_run_step, shape, case, device)
    for name, check in all_checks(Setting.of(False)).items():
        calls[f"smoke: {name}"] = check
    for more in others:
        calls.update(more)
    return calls


def _with_kernels_of_their_own(launches: list[Launched]) -> list[Launched]:
    """Without calls that differ in sizes alone, for which kernels are not specialised."""
    found: dict[object, Launched] = {}
    for one in launches:
        against = tuple(entries is None for entries in one.entries)
        found.setdefault((one.mode, one.dim, against, one.form), one)
    return list(found.values())


def _run_step(shape: str, case: str, device: torch.device) -> None:
    StepCase(SHAPES[shape], case, device, as_on_gpu=True).way("step")()


def _run_way(way: str, case: Case, device: torch.device) -> None:
    means = Means(device, "triton", compile_for_shape, square=16)
    for run in make_runs(case, Problem.draw(case, device), (way,), means, parts=True).values():
        run()
