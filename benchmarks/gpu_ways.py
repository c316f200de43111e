"""The hot path on a GPU: its cases, and the ways to compute the loss that are timed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.authors_step import authors_formula
from pixcontrast.functional import info_nce

TEMPERATURE = 0.1
WAYS = ("fused", "tiled", "dense", "compiled", "authors", "authors autocast")
DENSE_WAYS = ("dense", "compiled", "authors", "authors autocast")
"""The ways that hold M×N matrices."""


@dataclass(frozen=True)
class Mode:
    """The dtype of anchors and bank, and how PyTorch multiplies float32."""

    dtype: torch.dtype
    precision: str


MODES = {
    # The tiled form multiplies in float32, the authors' does too: at PyTorch's own default.
    "bf16": Mode(torch.bfloat16, "highest"),
    "tf32": Mode(torch.float32, "high"),
    "float32": Mode(torch.float32, "highest"),
}


@dataclass(frozen=True)
class Case:
    """M anchors of D components against N entries of a bank; None: against themselves."""

    mode: str
    anchors: int
    entries: int | None
    dim: int
    classes: int = 19

    @property
    def similarities(self) -> int:
        """M·N."""
        return self.anchors * (self.anchors if self.entries is None else self.entries)

    @property
    def useful_flops(self) -> int:
        """Of forward and backward: 4·M·N·D against a bank, 6·M²·D against itself.

        Similarities and the anchors' gradient are two products; against itself the gradient has
        a second role, which is a third. What a way computes twice does not count.
        """
        return (6 if self.entries is None else 4) * self.similarities * self.dim

    def __str__(self) -> str:
        entries = "itself" if self.entries is None else f"{self.entries:,}"
        return f"{self.mode}, {self.anchors:,} x {entries} x {self.dim}"


@dataclass(frozen=True)
class Drawn:
    """Unit-length anchors that want a gradient; a bank sorted by class, or None and None."""

    anchors: Tensor
    anchor_labels: Tensor
    entries: Tensor | None
    entry_labels: Tensor | None

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Drawn:
        """The same problem for the same case, made on the device: a million rows travel slowly."""
        generator = torch.Generator(device).manual_seed(0)
        dtype = MODES[case.mode].dtype

        def unit(rows: int) -> Tensor:
            made = torch.randn(rows, case.dim, generator=generator, device=device)
            return F.normalize(made, dim=1).to(dtype)

        anchors = unit(case.anchors).requires_grad_()
        labels = torch.randint(case.classes, (case.anchors,), generator=generator, device=device)
        if case.entries is None:
            return cls(anchors, labels, None, None)
        numbers = torch.arange(case.entries, device=device)
        return cls(anchors, labels, unit(case.entries), numbers * case.classes // case.entries)

    def in_float32(self) -> Drawn:
        """The same numbers in float32, as the authors hold anchors and queues."""
        entries = None if self.entries is None else self.entries.float()
        anchors = self.anchors.detach().float().requires_grad_()
        return replace(self, anchors=anchors, entries=entries)


@dataclass(frozen=True)
class Way:
    """One way: its loss as a function of nothing, and the anchors whose gradient is wanted."""

    anchors: Tensor
    loss: Callable[[], Tensor]

    def forward(self) -> object:
        """The loss alone, as in evaluation."""
        with torch.no_grad():
            return self.loss()

    def both(self) -> object:
        """Loss and gradient of the anchors; against themselves, of both their roles."""
        return torch.autograd.grad(self.loss(), self.anchors)


def ways(case: Case, drawn: Drawn, fused: str = "triton") -> dict[str, Callable[[], Way]]:
    """What can be timed, by name, each made when it is needed.

    `authors autocast` starts from float32 in every mode: it is with the 16-bit mode alone.
    """
    made: dict[str, Callable[[], Way]] = {
        "fused": partial(_way, drawn, partial(_info_nce, backend=fused)),
        "tiled": partial(_way, drawn, partial(_info_nce, backend="tiled")),
        "dense": partial(_way, drawn, textbook),
        "compiled": lambda: _way(drawn, torch.compile(textbook, dynamic=False)),
        "authors": lambda: _way(drawn.in_float32(), authors),
    }
    if case.mode == "bf16":
        made["authors autocast"] = lambda: _way(drawn.in_float32(), _under_autocast)
    return made


def textbook(
    anchors: Tensor, anchor_labels: Tensor, entries: Tensor | None, entry_labels: Tensor | None
) -> Tensor:
    """The formula with a softplus, the product in the dtype given, the rest in float32."""
    same = anchor_labels[:, None] == _labels(anchor_labels, entry_labels)[None, :]
    logits = (anchors @ _vectors(anchors, entries).T).float() / TEMPERATURE
    z = logits.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    positive = same if entries is not None else same & ~_itself(anchors)
    terms = F.softplus(z - logits)
    return ((terms * positive).sum(dim=1) / positive.sum(dim=1)).mean()


def authors(
    anchors: Tensor, anchor_labels: Tensor, entries: Tensor | None, entry_labels: Tensor | None
) -> Tensor:
    """The loss as the authors' code computes it, operation for operation, masks and all."""
    same = (anchor_labels[:, None] == _labels(anchor_labels, entry_labels)[None, :]).float()
    positive = same
    if entries is None:
        numbers = torch.arange(len(anchors), device=anchors.device)[:, None]
        positive = same * torch.ones_like(same).scatter_(1, numbers, 0)
    return authors_formula(anchors, _vectors(anchors, entries), positive, 1 - same, TEMPERATURE)


def _under_autocast(anchors: Tensor, *rest: Tensor | None) -> Tensor:
    with torch.autocast(anchors.device.type, torch.bfloat16):
        return authors(anchors, *rest)  # type: ignore[arg-type]


def _info_nce(
    anchors: Tensor,
    anchor_labels: Tensor,
    entries: Tensor | None,
    entry_labels: Tensor | None,
    backend: str,
) -> Tensor:
    return info_nce(
        anchors,
        anchor_labels,
        entries,
        entry_labels,
        temperature=TEMPERATURE,
        backend=backend,  # type: ignore[arg-type]
    )


def _way(drawn: Drawn, loss: Callable[..., Tensor]) -> Way:
    given = (drawn.anchors, drawn.anchor_labels, drawn.entries, drawn.entry_labels)
    return Way(drawn.anchors, lambda: loss(*given))


def _vectors(anchors: Tensor, entries: Tensor | None) -> Tensor:
    return anchors if entries is None else entries


def _labels(anchor_labels: Tensor, entry_labels: Tensor | None) -> Tensor:
    return anchor_labels if entry_labels is None else entry_labels


def _itself(anchors: Tensor) -> Tensor:
    return torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
