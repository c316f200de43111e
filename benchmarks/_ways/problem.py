"""The cases of the hot path, and their data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1


class Mode(NamedTuple):
    """How a case multiplies, and the largest relative error of a correct loss and gradient."""

    dtype: torch.dtype
    precision: str
    tolerance: float


MODES = {
    # Implementations that multiply in float32 in this mode do so at PyTorch's own default.
    "bf16": Mode(torch.bfloat16, "highest", 2e-2),
    "tf32": Mode(torch.float32, "high", 5e-3),
    "float32": Mode(torch.float32, "highest", 1e-4),
}


class Case(NamedTuple):
    """M anchors against N entries of a bank, or against themselves where `entries` is None."""

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
        """The flops of forward and backward: two products, or three against the anchors themselves.

        What an implementation computes twice does not count.
        """
        return (6 if self.entries is None else 4) * self.similarities * self.dim

    def __str__(self) -> str:
        entries = "itself" if self.entries is None else f"{self.entries:,}"
        return f"{self.mode}, {self.anchors:,} x {entries} x {self.dim}"


SMALL_SHAPES = tuple((m, None, d) for m in (128, 256, 512, 1024) for d in (64, 256))
"""Sampled anchors against themselves, without a bank: what most users run."""
CPU_SHAPES: tuple[tuple[int, int | None, int], ...] = (
    *SMALL_SHAPES,
    *((975, n, 256) for n in (19_000, 47_500, 95_000, 190_000, 475_000, 1_000_000)),
    *((m, 47_500, 256) for m in (244, 488, 1950)),
    (512, 100_000, 128),
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
"""The cases on CUDA, the most important first."""
REHEARSED = tuple(
    Case(mode, *shape) for mode in MODES for shape in ((40, 304, 16, 4), (32, None, 16, 4))
)


def choose_cases(
    shapes: Sequence[tuple[int, int | None, int, int]] | None,
    modes: Sequence[str] | None,
    device: str,
    rehearse: bool,
) -> list[Case]:
    """Return the cases in the order in which they are measured."""
    if shapes is not None:
        chosen = modes or (list(MODES) if device == "cuda" or rehearse else ["float32"])
        return [Case(mode, *shape) for mode in chosen for shape in shapes]
    cases = HEADLINES if device == "cuda" else tuple(Case("float32", *one) for one in CPU_SHAPES)
    cases = REHEARSED if rehearse else cases
    return [case for case in cases if modes is None or case.mode in modes]


def parse_case_shape(text: str) -> tuple[int, int | None, int, int]:
    """Parse MxNxD or MxNxDxC, where N may be `itself`."""
    try:
        anchors, entries, dim, classes = (text if text.count("x") > 2 else f"{text}x19").split("x")
        return int(anchors), None if entries == "itself" else int(entries), int(dim), int(classes)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected MxNxD or MxNxDxC, N a number or itself, not {text!r}"
        ) from None


@dataclass(frozen=True)
class Problem:
    """Unit-length anchors that require a gradient, and a bank sorted by class, or None and None."""

    anchors: Tensor
    anchor_labels: Tensor
    entries: Tensor | None
    entry_labels: Tensor | None

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Problem:
        """Return the same problem for the same case. A million rows take long to copy to a GPU."""
        generator = torch.Generator(device).manual_seed(0)

        def unit(rows: int) -> Tensor:
            made = torch.randn(rows, case.dim, generator=generator, device=device)
            return F.normalize(made, dim=1).to(MODES[case.mode].dtype)

        anchors = unit(case.anchors).requires_grad_()
        labels = torch.randint(case.classes, (case.anchors,), generator=generator, device=device)
        if case.entries is None:
            return cls(anchors, labels, None, None)
        numbers = torch.arange(case.entries, device=device)
        return cls(anchors, labels, unit(case.entries), numbers * case.classes // case.entries)

    @property
    def contrast(self) -> Tensor:
        """(N, D) the entries: the bank, or the anchors themselves."""
        return self.anchors if self.entries is None else self.entries

    @property
    def contrast_labels(self) -> Tensor:
        """(N,) the labels of `contrast`."""
        return self.anchor_labels if self.entry_labels is None else self.entry_labels

    def to(self, dtype: torch.dtype) -> Problem:
        """Return the same numbers in another dtype."""
        entries = None if self.entries is None else self.entries.to(dtype)
        anchors = self.anchors.detach().to(dtype).requires_grad_()
        return replace(self, anchors=anchors, entries=entries)
