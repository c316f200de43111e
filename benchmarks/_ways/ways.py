"""The implementations of the loss that are timed against each other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure.command import matmul_precision
from benchmarks._measure.graphs import replayed
from benchmarks._measure.timers import Run
from benchmarks._ways import formulas
from benchmarks._ways.attention import FlexLoss, attention_output
from benchmarks._ways.cases import Launched
from benchmarks._ways.problem import MODES, Case, Problem
from benchmarks._ways.products import MOST_ELEMENTS, floor_products, square_product
from pixcontrast import HardNegativeSampler

PHASES = (
    ("square", "floor", "info_nce", "unit length"),
    ("sdpa", "tiled", "mined", "dense", "authors", "authors autocast"),
)
"""On a GPU, ways by the order in which they are added to what is timed. "mined" is the tiled form
with the default `HardNegativeSampler`."""
COMPILED_WAYS = ("flex", "compiled")
"""The ways that compile for long."""
WAYS = (*PHASES[0], *PHASES[1], *COMPILED_WAYS)
CPU_WAYS = ("floor", "tiled", "mined", "compiled", "dense", "authors")
CUDA_WAYS = tuple(name for name in WAYS if name != "mined")
LOSSES = ("info_nce", "unit length", "tiled", "dense", "flex", "compiled", "authors",
          "authors autocast")  # fmt: skip
"""The ways whose loss and gradient are compared with the truth."""
OURS = ("info_nce", "unit length", "tiled")
REPLAYED = ("info_nce", "unit length")
REFERENCES = ("floor", "tiled", "info_nce")
"""Each result has a ratio to the time of these, where they are measured."""
DENSE_WAYS = ("dense", "compiled", "authors", "authors autocast")
"""The ways that hold M×N matrices."""


@dataclass(frozen=True)
class Means:
    """What the ways are made with.

    Attributes:
        device: where they run.
        backend: of the fused ways: "triton", or "tiled" in a rehearsal.
        compiler: of the compiled ways: `torch.compile`, or the identity in a rehearsal.
        square: rows and columns of the large square product.
    """

    device: torch.device
    backend: str
    compiler: Callable[[Any], Any]
    square: int


def compile_for_shape(function: Any) -> Any:
    """Compile a function for the shapes of one case. The compiler is imported when this runs."""
    return torch.compile(function, dynamic=False)


class Way:
    """One implementation on one problem, built when it first runs: it may fail or compile then.

    Args:
        problem: anchors and entries.
        build: returns the function that computes the loss of a problem.
        dtype: of the numbers it is given. Default: those of the problem.
    """

    def __init__(
        self,
        problem: Problem,
        build: Callable[[Problem], Callable[[], Tensor]],
        dtype: torch.dtype | None = None,
    ) -> None:
        self._drawn = problem
        self._build = build
        self._dtype = dtype

    @cached_property
    def problem(self) -> Problem:
        """The anchors and entries in the way's own dtype."""
        return self._drawn if self._dtype is None else self._drawn.to(self._dtype)

    @cached_property
    def output(self) -> Callable[[], Tensor]:
        """The function that computes the loss."""
        return self._build(self.problem)

    def forward(self) -> formulas.Losses:
        """Return the loss alone, as in evaluation."""
        with torch.no_grad():
            return (self.output(),)

    def both(self) -> formulas.Losses:
        """Return the loss and the anchors' gradient; against themselves, of both their roles."""
        output = self.output()
        upstream = None if output.dim() == 0 else torch.ones_like(output)
        (gradient,) = torch.autograd.grad(output, self.problem.anchors, upstream)
        return output.detach(), gradient


def make_runs(
    case: Case, problem: Problem, names: Collection[str], means: Means, parts: bool
) -> dict[str, Run]:
    """Return what is timed, by name, in the order of `PHASES`.

    A way's own name is its forward and backward. With `parts`, "NAME forward" is the forward
    alone, and the fused ways are also replayed from a CUDA graph: "NAME replayed" and
    "NAME forward replayed".
    """
    runs: dict[str, Run] = {
        "square": square_product(MODES[case.mode].dtype, means.device, means.square),
        "floor": floor_products(problem, MOST_ELEMENTS if parts else case.similarities),
    }
    for name, way in _ways(problem, means).items():
        runs[name] = way.both
        if parts:
            runs[f"{name} forward"] = way.forward
        if parts and name in REPLAYED:
            runs[f"{name} replayed"] = replayed(way.both, means.device)
            runs[f"{name} forward replayed"] = replayed(way.forward, means.device)
    chosen = [name for name in names if name != "authors autocast" or case.mode == "bf16"]
    return {name: run for name, run in runs.items() if way_of(name) in chosen}


def way_of(name: str) -> str:
    """Return the way that a run of `make_runs` belongs to."""
    return name.removesuffix(" replayed").removesuffix(" forward")


def launch(launched: Launched, device: torch.device, backend: str = "triton") -> None:
    """Run forward, and forward and backward, once: every kernel of them is then compiled."""
    mode = "float32" if launched.mode == "autocast" else launched.mode
    drawn = [
        Problem.draw(Case(mode, launched.anchors, entries, launched.dim), device)
        for entries in launched.entries
    ]
    banks = [problem.entries for problem in drawn]
    if launched.mode == "autocast":
        banks = [None if bank is None else bank.bfloat16() for bank in banks]
    loss = formulas.public_loss if launched.form == "info_nce" else formulas.unit_length_loss
    options = {"negative_sampler": HardNegativeSampler()} if launched.form == "mined" else {}
    anchors, labels = drawn[0].anchors, drawn[0].anchor_labels
    way = Way(drawn[0], lambda _: partial(
        loss, anchors, labels, banks, [problem.entry_labels for problem in drawn], backend,
        **options,
    ))  # fmt: skip
    with (
        matmul_precision(MODES[mode].precision),
        torch.autocast(device.type, torch.bfloat16, enabled=launched.mode == "autocast"),
    ):
        way.forward()
        way.both()


def _ways(problem: Problem, means: Means) -> dict[str, Way]:
    given = (
        problem.anchors,
        problem.anchor_labels,
        problem.entries,
        problem.entry_labels,
    )

    def ours(loss: Callable[..., Tensor], *options: Any) -> Way:
        return Way(problem, lambda _: partial(loss, *given, *options))

    def plain(loss: Callable[[Problem], Tensor], dtype: torch.dtype | None = None) -> Way:
        return Way(problem, lambda converted: partial(loss, converted), dtype)

    return {
        "info_nce": ours(formulas.public_loss, means.backend),
        "unit length": ours(formulas.unit_length_loss, means.backend),
        "sdpa": plain(attention_output),
        "tiled": ours(formulas.public_loss, "tiled"),
        "mined": ours(formulas.public_loss, "tiled", HardNegativeSampler()),
        "dense": plain(formulas.textbook_loss),
        # The authors hold anchors and queues in float32.
        "authors": plain(formulas.authors_loss, torch.float32),
        "authors autocast": plain(formulas.authors_loss_under_autocast, torch.float32),
        "flex": Way(problem, lambda drawn: FlexLoss(drawn, means.compiler)),
        "compiled": Way(
            problem, lambda drawn: partial(means.compiler(formulas.textbook_loss), drawn)
        ),
    }
