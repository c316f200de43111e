"""The arguments of the operators: a `Problem` as tensors and plain values, and their schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import (
    Denominator,
    Problem,
    Shards,
    compute_dtype,
    contrast_tensors,
)
from pixcontrast.mining import HardNegativeSampler, Strategy


class Inputs(NamedTuple):
    """The arguments of the operators, in the order of `SCHEMA`.

    `entries` and `entry_labels` are those of the contrast tensors that are not the anchors;
    `group` names the ranks of the shards. The remaining fields are those of `Problem` and of
    `HardNegativeSampler`; `strategy` is None without a negative sampler.
    """

    anchors: Tensor
    labels: Tensor
    seed: Tensor | None
    entries: Sequence[Tensor]
    entry_labels: Sequence[Tensor]
    shard_entries: Sequence[Tensor]
    shard_labels: Sequence[Tensor]
    is_anchors: Sequence[bool]
    want_gradient: bool
    fused: bool
    group: str | None
    temperature: float
    denominator: str
    product_dtype: torch.dtype
    unit_length: bool
    first_anchor_id: int
    strategy: str | None
    ratio: float
    num_negatives: int | None
    num_positives: int | None

    @classmethod
    def of(cls, problem: Problem, shards: Shards | None, *, fused: bool) -> Inputs:
        """Convert a problem."""
        others = [tensor for tensor in problem.contrast if not tensor.is_anchors]
        sampler = problem.negative_sampler
        return cls(
            anchors=problem.anchors,
            labels=problem.labels,
            seed=problem.seed,
            entries=[tensor.entries for tensor in others],
            entry_labels=[tensor.labels for tensor in others],
            shard_entries=[] if shards is None else [e.detach() for e in shards.entries],
            shard_labels=[] if shards is None else list(shards.labels),
            is_anchors=[tensor.is_anchors for tensor in problem.contrast],
            # Decided here, because grad mode is always off inside an operator.
            want_gradient=torch.is_grad_enabled() and problem.anchors.requires_grad,
            fused=fused,
            group=None if shards is None else shards.ranks.name,
            temperature=problem.temperature,
            denominator=problem.denominator,
            product_dtype=problem.product_dtype,
            unit_length=problem.unit_length,
            first_anchor_id=problem.first_anchor_id,
            strategy=None if sampler is None else sampler.strategy,
            ratio=1.0 if sampler is None else sampler.ratio,
            num_negatives=None if sampler is None else sampler.num_negatives,
            num_positives=None if sampler is None else sampler.num_positives,
        )

    def problem(self) -> Problem:
        """Convert back to the problem, without its shards."""
        sampler = None
        if self.strategy is not None:
            sampler = HardNegativeSampler(
                strategy=cast(Strategy, self.strategy),
                ratio=self.ratio,
                num_negatives=self.num_negatives,
                num_positives=self.num_positives,
            )
        others = iter(zip(self.entries, self.entry_labels, strict=True))
        return Problem(
            anchors=self.anchors,
            labels=self.labels,
            contrast=contrast_tensors(
                (*((self.anchors, self.labels) if own else next(others)), own)
                for own in self.is_anchors
            ),
            temperature=self.temperature,
            denominator=cast(Denominator, self.denominator),
            negative_sampler=sampler,
            seed=self.seed,
            product_dtype=self.product_dtype,
            compute_dtype=compute_dtype(self.anchors),
            unit_length=self.unit_length,
            first_anchor_id=self.first_anchor_id,
        )


SCHEMA = (
    "Tensor anchors, Tensor labels, Tensor? seed, Tensor[] entries, Tensor[] entry_labels, "
    "Tensor[] shard_entries, Tensor[] shard_labels, bool[] is_anchors, bool want_gradient, "
    "bool fused, str? group, float temperature, str denominator, ScalarType product_dtype, "
    "bool unit_length, SymInt first_anchor_id, str? strategy, float ratio, SymInt? num_negatives, "
    "SymInt? num_positives"
)
NUM_TENSOR_FIELDS = Inputs._fields.index("is_anchors")
