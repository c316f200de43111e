"""The ways to compute the loss that are timed against each other, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.authors_step import authors_formula
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

TEMPERATURE = 0.1
NAMES = ("floor", "tiled", "mined", "compiled", "dense", "authors")
"""All ways; `mined` is the tiled form with the default `HardNegativeSampler`."""
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """M anchors against N entries of D components, in C classes."""

    anchors: int
    entries: int
    dim: int
    classes: int = 19

    def __str__(self) -> str:
        return f"{self.anchors} x {self.entries} x {self.dim}"


@dataclass(frozen=True)
class Problem:
    """Unit-length anchors that want a gradient, and a bank of entries sorted by class."""

    anchors: Tensor
    anchor_labels: Tensor
    entries: Tensor
    entry_labels: Tensor

    @classmethod
    def draw(cls, shape: Shape) -> Problem:
        """The same problem for the same shape."""
        generator = torch.Generator().manual_seed(0)
        anchors = torch.randn(shape.anchors, shape.dim, generator=generator)
        entries = torch.randn(shape.entries, shape.dim, generator=generator)
        return cls(
            torch.nn.functional.normalize(anchors, dim=1).requires_grad_(),
            torch.randint(shape.classes, (shape.anchors,), generator=generator),
            entries.div_(torch.linalg.vector_norm(entries, dim=1, keepdim=True)),
            torch.arange(shape.entries) * shape.classes // shape.entries,
        )


def authors_loss(
    anchors: Tensor, anchor_labels: Tensor, entries: Tensor, entry_labels: Tensor
) -> Tensor:
    """The loss as the authors' code computes it, operation for operation."""
    positive = (anchor_labels[:, None] == entry_labels[None, :]).float()
    return authors_formula(anchors, entries, positive, 1 - positive, TEMPERATURE)


def dense_formula(
    anchors: Tensor, anchor_labels: Tensor, entries: Tensor, entry_labels: Tensor
) -> Tensor:
    """The textbook formula with a softplus, which is what torch.compile is given."""
    same = anchor_labels[:, None] == entry_labels[None, :]
    logits = anchors @ entries.T / TEMPERATURE
    z = logits.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    terms = torch.nn.functional.softplus(z - logits)
    return ((terms * same).sum(dim=1) / same.sum(dim=1)).mean()


@cache
def _compiled() -> Callable[..., Tensor]:
    """Not before it is run: importing the compiler alone takes seconds."""
    return torch.compile(dense_formula)


def variants(problem: Problem) -> dict[str, Run]:
    """What is run, by name. Each call is one forward and one backward of the anchors."""
    tiled = partial(info_nce, temperature=TEMPERATURE, backend="tiled")
    arguments = (problem.anchors, problem.anchor_labels, problem.entries, problem.entry_labels)

    def trained(loss: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(loss(*arguments), problem.anchors)

    return {
        "floor": _floor(problem),
        "tiled": trained(tiled),
        "mined": trained(partial(tiled, negative_sampler=HardNegativeSampler())),
        "compiled": trained(lambda *given: _compiled()(*given)),
        "dense": trained(dense_formula),
        "authors": trained(authors_loss),
    }


def _floor(problem: Problem) -> Run:
    """Two plain matrix products into results that are there: what no loss can go below."""
    anchors, entries = problem.anchors.detach(), problem.entries
    products: list[Tensor] = []

    def run() -> None:
        if not products:
            products.append(anchors.new_empty(len(anchors), len(entries)))
            products.append(torch.empty_like(anchors))
        torch.mm(anchors, entries.T, out=products[0])
        torch.mm(products[0], entries, out=products[1])

    return run
