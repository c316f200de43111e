"""What every backend is handed: anchors, contrast entries in pieces, and the equation's options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pixcontrast.mining import HardNegativeSampler

Denominator = Literal["negatives", "all"]

LOG2_E = 1.4426950408889634
"""Kernels make exponentials to the base 2, as the hardware does."""


@dataclass(frozen=True)
class Piece:
    """One tensor of contrast entries. Pieces are never concatenated outside `dense`.

    Attributes:
        entries: (n, D), as the caller gave them; the anchors themselves where `is_anchors`.
        labels: (n,) int64, `IGNORED` for entries that take no part.
        is_anchors: whether entry j is anchor j, and so not its own positive.
        first_column: the number of this piece's first entry among all N entries; of those that
            other ranks may hold, below 0.
    """

    entries: Tensor
    labels: Tensor
    is_anchors: bool
    first_column: int


def numbered(
    pieces: Iterable[tuple[Tensor, Tensor, bool]], first_column: int = 0
) -> tuple[Piece, ...]:
    """Pieces of (entries, labels, is_anchors), numbered through from `first_column`."""
    found = []
    for entries, labels, is_anchors in pieces:
        found.append(Piece(entries, labels, is_anchors, first_column))
        first_column += labels.shape[0]
    return tuple(found)


@dataclass(frozen=True)
class Problem:
    """One call of `info_nce`, checked and resolved.

    Attributes:
        anchors: (M, D), as the caller gave them.
        labels: (M,) int64, `IGNORED` for anchors that take no part.
        pieces: the contrast entries.
        temperature: τ.
        denominator: what Z sums over, see `pixcontrast.functional.info_nce`.
        mining: which entries count per anchor, or None for all of them.
        seed: () int64, the state of the random choice that `mining` makes, if it makes one.
        product_dtype: the dtype to which the operands of the similarities are rounded.
        compute_dtype: the dtype of similarities, softmax, sums and the loss.
        unit_length: whether the caller knows all vectors to be of unit length or zeros, those
            that take no part too.
        first_row: the number of the first anchor among those of all ranks.
    """

    anchors: Tensor
    labels: Tensor
    pieces: tuple[Piece, ...]
    temperature: float
    denominator: Denominator
    mining: HardNegativeSampler | None
    seed: Tensor | None
    product_dtype: torch.dtype
    compute_dtype: torch.dtype
    unit_length: bool = False
    first_row: int = 0

    @property
    def inverse_temperature(self) -> float:
        # Kept finite in the dtype that multiplies: 0 · inf would be NaN for orthogonal vectors.
        return min(1.0 / self.temperature, torch.finfo(self.compute_dtype).max)

    @property
    def logit_limit(self) -> float:
        """Similarities saturate here, so that the difference of two of them stays finite."""
        return torch.finfo(self.compute_dtype).max / 4

    def operand(self, vectors: Tensor) -> Tensor:
        """Vectors rounded to the product's dtype, held in the dtype that accumulates.

        A product of two 16-bit numbers is exact in float32, so this is what a matrix unit does
        that multiplies in 16 bits and accumulates in 32.
        """
        return self.within_range(vectors).to(self.product_dtype).to(self.compute_dtype)

    def within_range(self, vectors: Tensor) -> Tensor:
        """Finite vectors that stay finite in the product's dtype: 0 · inf would be NaN."""
        limit = torch.finfo(self.product_dtype).max
        narrower = torch.finfo(vectors.dtype).max > limit
        return vectors.clamp(-limit, limit) if narrower else vectors


def compute_dtype(anchors: Tensor) -> torch.dtype:
    """float64 for float64 anchors, float32 for everything else."""
    return torch.float64 if anchors.dtype == torch.float64 else torch.float32
