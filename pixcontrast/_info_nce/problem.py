"""One checked call of `info_nce`, as every form of the equation takes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks
from pixcontrast.mining import HardNegativeSampler

Denominator = Literal["negatives", "all"]

LOG2_E = 1.4426950408889634
"""Converts exponents from base e to base 2, the base of the exponential in hardware."""


@dataclass(frozen=True)
class ContrastTensor:
    """One tensor of contrast entries. Only `dense` concatenates them.

    Attributes:
        entries (Tensor): (n, D), as the caller passed it; the anchors if `is_anchors`.
        labels (Tensor): (n,) int64, `IGNORED` for ignored entries.
        is_anchors (bool): whether entry j is anchor j, which is then not its own positive.
        first_id (int): id of the first entry; the others have consecutive ids. Ids of entries that
            other ranks may hold are negative.
    """

    entries: Tensor
    labels: Tensor
    is_anchors: bool
    first_id: int


def contrast_tensors(
    tensors: Iterable[tuple[Tensor, Tensor, bool]], first_id: int = 0
) -> tuple[ContrastTensor, ...]:
    """Assign consecutive ids to the entries of (entries, labels, is_anchors) tuples."""
    result = []
    for entries, labels, is_anchors in tensors:
        result.append(ContrastTensor(entries, labels, is_anchors, first_id))
        first_id += labels.shape[0]
    return tuple(result)


@dataclass(frozen=True)
class Problem:
    """One call of `info_nce`, with checked and resolved arguments.

    Attributes:
        anchors (Tensor): (M, D), as the caller passed it.
        labels (Tensor): (M,) int64, `IGNORED` for ignored anchors.
        contrast (tuple of ContrastTensor): the contrast entries.
        temperature (float): softmax temperature τ.
        denominator (str): what Z sums over, see `pixcontrast.functional.info_nce`.
        negative_sampler (HardNegativeSampler, optional): selects entries for each anchor; None: all
            entries.
        seed (Tensor, optional): () int64, seed of the random choice of `negative_sampler`.
        product_dtype (torch.dtype): dtype of the operands of matrix products.
        compute_dtype (torch.dtype): dtype of similarities, softmax, sums and the loss.
        unit_length (bool): whether every vector, ignored ones too, is known to have unit length or
            to be zero. Default: False.
        first_anchor_id (int): id of the first anchor among the anchors of all ranks. Default: 0.
    """

    anchors: Tensor
    labels: Tensor
    contrast: tuple[ContrastTensor, ...]
    temperature: float
    denominator: Denominator
    negative_sampler: HardNegativeSampler | None
    seed: Tensor | None
    product_dtype: torch.dtype
    compute_dtype: torch.dtype
    unit_length: bool = False
    first_anchor_id: int = 0

    @property
    def inverse_temperature(self) -> float:
        """1/τ, kept finite in the dtype that multiplies, because 0 · inf is NaN."""
        return min(1.0 / self.temperature, torch.finfo(self.compute_dtype).max)

    @property
    def logit_limit(self) -> float:
        """Similarities saturate here, so that the difference of two of them is finite."""
        return torch.finfo(self.compute_dtype).max / 4

    def operand(self, vectors: Tensor) -> Tensor:
        """Round vectors to the product's dtype, and return them in the dtype that accumulates.

        The product of two 16-bit numbers is exact in float32, so the result is that of a matrix
        unit that multiplies in 16 bits and accumulates in 32 bits.
        """
        return self.saturate(vectors).to(self.product_dtype).to(self.compute_dtype)

    def saturate(self, vectors: Tensor) -> Tensor:
        """Clamp vectors to the range of the product's dtype, because 0 · inf is NaN."""
        limit = torch.finfo(self.product_dtype).max
        narrower = torch.finfo(vectors.dtype).max > limit
        return vectors.clamp(-limit, limit) if narrower else vectors


class Shards(NamedTuple):
    """Contrast entries that are distributed over ranks.

    Attributes:
        ranks (Ranks): the ranks.
        entries (sequence of Tensor): (n, D) each, the shard of this rank. The shapes are the same
            on every rank.
        labels (sequence of Tensor): (n,) int64 each, `IGNORED` for ignored entries.
    """

    ranks: Ranks
    entries: Sequence[Tensor]
    labels: Sequence[Tensor]


def compute_dtype(anchors: Tensor) -> torch.dtype:
    """Return float64 for float64 anchors and float32 for all others."""
    return torch.float64 if anchors.dtype == torch.float64 else torch.float32
