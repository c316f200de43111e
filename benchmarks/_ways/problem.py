"""One case of the hot path: its sizes, and the problem drawn for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Mode:
    """How a case multiplies.

    Attributes:
        dtype: of the anchors and the bank.
        precision: of float32 products, as `torch.set_float32_matmul_precision` takes it.
        tolerance: the largest relative error of a correct loss and gradient.
    """

    dtype: torch.dtype
    precision: str
    tolerance: float


MODES = {
    # Implementations that multiply in float32 in this mode do so at PyTorch's own default.
    "bf16": Mode(torch.bfloat16, "highest", 2e-2),
    "tf32": Mode(torch.float32, "high", 5e-3),
    "float32": Mode(torch.float32, "highest", 1e-4),
}


@dataclass(frozen=True)
class Case:
    """M anchors against N entries of a bank, or against themselves where `entries` is None."""

    mode: str
    anchors: int
    entries: int | None
    dim: int
    classes: int = 19

    @property
    def num_entries(self) -> int:
        """N."""
        return self.anchors if self.entries is None else self.entries

    @property
    def similarities(self) -> int:
        """M·N."""
        return self.anchors * self.num_entries

    @property
    def useful_flops(self) -> int:
        """The flops of forward and backward: 4·M·N·D against a bank, 6·M²·D against itself.

        Similarities and the anchors' gradient are two products. Against itself the gradient has a
        second role, which is a third. What an implementation computes twice does not count.
        """
        return (6 if self.entries is None else 4) * self.similarities * self.dim

    def __str__(self) -> str:
        entries = "itself" if self.entries is None else f"{self.entries:,}"
        return f"{self.mode}, {self.anchors:,} x {entries} x {self.dim}"


@dataclass(frozen=True)
class Problem:
    """Unit-length anchors that require a gradient, and a bank sorted by class, or None and None."""

    anchors: Tensor
    anchor_labels: Tensor
    entries: Tensor | None
    entry_labels: Tensor | None

    @classmethod
    def draw(cls, case: Case, device: torch.device) -> Problem:
        """Return the same problem for the same case and device.

        It is made on the device, because a million rows take long to copy there.
        """
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
