"""The implementations of the loss that are timed against each other, and what the device can do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure.device import replayed
from benchmarks._measure.timers import Run
from benchmarks._ways import formulas
from benchmarks._ways.attention import FlexLoss
from benchmarks._ways.problem import Case, Problem
from pixcontrast import HardNegativeSampler

PHASES = (
    ("square", "floor", "info_nce", "unit length"),
    ("tiled", "mined", "dense", "authors"),
)
"""On a GPU, ways by the order in which they are added to what is timed. "mined" is the tiled form
with the default `HardNegativeSampler`."""
COMPILED_WAYS = ("flex", "compiled")
"""The ways that compile for long."""
WAYS = (*PHASES[0], *PHASES[1], *COMPILED_WAYS)
CPU_WAYS = ("floor", "tiled", "mined", "compiled", "dense", "authors")
CUDA_WAYS = tuple(name for name in WAYS if name != "mined")
PRODUCTS = ("square", "floor")
"""Plain products, which other ways are compared with."""
UNCHECKED = (*PRODUCTS, "mined")
"""The ways that have another result than the loss, or none."""
OURS = ("info_nce", "unit length", "tiled")
REFERENCES = ("floor", "tiled", "info_nce")
"""Each result has a ratio to the time of these, where they are measured."""
REPLAYED = ("info_nce", "unit length")
DENSE_WAYS = ("dense", "compiled", "authors")
"""The ways that hold M×N matrices."""
MOST_ELEMENTS = 1 << 28
"""On a GPU, of the intermediate result of the floor; beyond it the products are made over some
columns at a time."""


def compile_for_shape(function: Any) -> Any:
    """Compile a function for the shapes of one case. The compiler is imported when this runs."""
    return torch.compile(function, dynamic=False)


def make_runs(
    case: Case,
    problem: Problem,
    names: Collection[str],
    *,
    backend: str = "triton",
    square: int = 8192,
    compiler: Callable[[Any], Any] = compile_for_shape,
    replays: bool = False,
) -> dict[str, Run]:
    """Return the forward and backward of each way.

    `backend` is that of the fused ways; with `replays`, these are also replayed from a CUDA graph
    as "NAME replayed". `square` is the number of rows of the large square product.
    """
    given = (problem.anchors, problem.anchor_labels, problem.entries, problem.entry_labels)
    # The authors hold anchors and queues in float32.
    wide = problem.to(torch.float32) if "authors" in names else problem

    def ours(backend: str, **options: Any) -> Run:
        options["backend"] = backend
        return backward_of(lambda: partial(formulas.our_loss, *given, **options), problem)

    def plain(loss: Callable[[Problem], Tensor], drawn: Problem = problem) -> Run:
        return backward_of(lambda: partial(loss, drawn), drawn)

    runs: dict[str, Run] = {
        "square": square_product(problem.anchors, square),
        "floor": floor_products(problem, MOST_ELEMENTS if replays else case.similarities),
        "info_nce": ours(backend),
        "unit length": ours(backend, unit_length=True),
        "tiled": ours("tiled"),
        "mined": ours("tiled", negative_sampler=HardNegativeSampler()),
        "dense": plain(formulas.textbook_loss),
        "authors": plain(formulas.authors_loss, wide),
        "flex": backward_of(lambda: FlexLoss(problem, compiler), problem),
        "compiled": backward_of(
            lambda: partial(compiler(formulas.textbook_loss), problem), problem
        ),
    }
    chosen: dict[str, Run] = {}
    for name in [name for name in runs if name in names]:
        chosen[name] = runs[name]
        if replays and name in REPLAYED:
            chosen[f"{name} replayed"] = replayed(runs[name], problem.anchors.device)
    return chosen


def backward_of(build: Callable[[], Callable[[], Tensor]], problem: Problem) -> Run:
    """Return a run of the loss and the anchors' gradient; against themselves, of both roles.

    The loss is built when it first runs: it may fail or compile then.
    """
    built: list[Callable[[], Tensor]] = []

    def run() -> formulas.Losses:
        if not built:
            built.append(build())
        output = built[0]()
        upstream = None if output.dim() == 0 else torch.ones_like(output)
        (gradient,) = torch.autograd.grad(output, problem.anchors, upstream)
        return output.detach(), gradient

    return run


def way_of(name: str) -> str:
    """Return the way that a run of `make_runs` belongs to."""
    return name.removesuffix(" replayed")


def floor_products(problem: Problem, most_elements: int) -> Run:
    """Return the two products of a loss, M×D by D×N and M×N by N×D, into allocated results."""
    anchors, entries = problem.anchors.detach(), problem.contrast.detach()
    rows = max(len(anchors), 1)
    columns = max(1, min(len(entries), most_elements // rows))
    results: list[Tensor] = []

    def run() -> None:
        if not results:
            results.extend((anchors.new_empty(rows * columns), torch.empty_like(anchors)))
        between, result = results
        for part in torch.split(entries, columns):
            tile = between[: rows * len(part)].view(rows, len(part))
            torch.mm(anchors, part.T, out=tile)
            torch.mm(tile, part, out=result)

    return run


def square_product(like: Tensor, size: int) -> Run:
    """Return one large product. It is of random numbers: zeros take less power and run faster."""
    operands: list[Tensor] = []

    def run() -> None:
        if not operands:
            drawn = (torch.randn(size, size, device=like.device).to(like.dtype) for _ in range(2))
            operands.extend((*drawn, like.new_empty(size, size)))
        torch.mm(operands[0], operands[1], out=operands[2])

    return run


def flops_of(name: str, case: Case, square: int) -> int:
    """Return the flops of a run; the floor has two products whatever the loss needs."""
    bounds = {"floor": 4 * case.similarities * case.dim, "square": 2 * square**3}
    return bounds.get(name, case.useful_flops)
