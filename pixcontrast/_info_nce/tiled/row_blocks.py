"""Row blocks, the tiles of mining: a few anchors against every contrast entry.

An exact selection needs an anchor's complete row of similarities. A row block has as many complete
rows as fit into a fixed number of similarities, and at least one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.thresholds import PairKeys, Thresholds, apply_thresholds
from pixcontrast._info_nce.tiled.class_order import ClassOrder, masks_of
from pixcontrast._info_nce.tiled.similarities import TILE_ROWS, Similarities, split, tile_columns

# Similarities of a row block: 64 rows of 100,000 entries. Products of fewer rows are slow.
BLOCK_SIZE = 13 << 19
# Similarities that are masked at a time. About a dozen tensors of this size exist at once.
MASKED_SIZE = 1 << 20


class MaskedRows(NamedTuple):
    """A few anchors, `rows` of `RowBlocks.anchors`, against some columns, (R, T) each.

    `keys` are the random keys, or None if the strategy is not random.
    """

    rows: slice
    logits: Tensor
    masks: Masks
    keys: Tensor | None

    def select(self, thresholds: Thresholds) -> Masks:
        """Return the positives and negatives that meet the thresholds of these anchors."""
        return apply_thresholds(thresholds, self.logits, self.masks, self.keys)


class RowBlocks:
    """Computes the row blocks of a problem. The columns are the ordered entries of all tensors.

    Of contrast tensors that are not `wanted`, only the labels are read.

    Attributes:
        rows (Tensor): (m, D), the ordered anchors as operands.
        contrast (list of ClassOrder): the ordered entries of each contrast tensor.
        columns (list of slice): the columns of each contrast tensor.
    """

    def __init__(self, problem: Problem, wanted: list[bool]) -> None:
        assert problem.negative_sampler is not None
        self.problem = problem
        self.sampler = problem.negative_sampler
        self.anchors = ClassOrder.of_anchors(problem)
        every = ClassOrder.of_contrast(problem, [True] * len(wanted))
        self.contrast = list(every.values())
        self.rows = self.anchors.operands(slice(0, len(self.anchors)))
        read = {index: order for index, order in every.items() if wanted[index]}
        self._similarities = Similarities.of(problem, self.rows, read)
        ends = list(accumulate(map(len, self.contrast), initial=0))
        self.columns = [slice(*one) for one in pairwise(ends)]
        self.num_columns = ends[-1]
        self._max_columns = tile_columns(self.rows.device)
        self._keys: PairKeys | None = None
        if problem.seed is not None and self.contrast:
            entry_ids = torch.cat([order.ids() for order in self.contrast])
            self._keys = PairKeys.of(problem.seed, self.anchors.ids(), entry_ids)

    def blocks(self) -> list[slice]:
        """Return the anchors of each block, the same for any `wanted`; none without a column.

        The similarities of the forward and the backward are bit-identical only for equal blocks.
        """
        if self.num_columns == 0:
            return []
        height = min(TILE_ROWS, max(1, BLOCK_SIZE // self.num_columns))
        return list(split(slice(0, len(self.anchors)), height))

    def all(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield every block with its similarities (R, N), a buffer that the next one overwrites."""
        blocks = self.blocks()
        height = max((block.stop - block.start for block in blocks), default=0)
        buffer = self.rows.new_empty(height, self.num_columns)
        for block in blocks:
            logits = buffer[: block.stop - block.start]
            self.write_all(logits, block)
            yield block, logits

    def masked(self) -> Iterator[MaskedRows]:
        """Yield all anchors, a few at a time, against all columns."""
        for block, logits in self.all():
            yield from self.split(block, logits)

    def split(self, block: slice, logits: Tensor) -> Iterator[MaskedRows]:
        """Split a block with its similarities (R, N) into a few rows at a time."""
        for rows in split(block, max(1, MASKED_SIZE // self.num_columns)):
            yield self.mask(rows, logits[rows.start - block.start : rows.stop - block.start])

    def tiles(self, index: int) -> list[slice]:
        """Split the entries of a contrast tensor into the columns of a matrix product."""
        return list(split(slice(0, len(self.contrast[index])), self._max_columns))

    def write_all(self, logits: Tensor, block: slice) -> None:
        """Overwrite `logits` (R, N) by the similarities of a block with all columns."""
        for index, columns in enumerate(self.columns):
            self.write(logits[:, columns], block, index)

    def write(self, logits: Tensor, block: slice, index: int) -> None:
        """Overwrite `logits` (R, n) by the similarities of a block with a contrast tensor."""
        order = self.contrast[index]
        for tile in self.tiles(index):
            self._similarities.write(logits[:, tile], self.rows[block], order.operands(tile), index)

    def mask(self, rows: slice, logits: Tensor, index: int | None = None) -> MaskedRows:
        """Return the masks and keys of some anchors with a contrast tensor; None: with all."""
        contrast = self.contrast if index is None else [self.contrast[index]]
        masks = [masks_of(self.anchors, rows, order, slice(0, len(order))) for order in contrast]
        positive, negative = (torch.cat(parts, dim=1) for parts in zip(*masks, strict=True))
        keys = self.keys(rows, slice(None) if index is None else self.columns[index])
        all_keys = None if keys is None else keys.all()
        return MaskedRows(rows, logits, Masks(positive, negative), all_keys)

    def keys(self, rows: slice, columns: slice | Tensor) -> PairKeys | None:
        """Return the random keys of some anchors with some columns; None without a seed."""
        return None if self._keys is None else self._keys.part(rows, columns)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return (R, D) Σ_j w_ij k_j over all columns, for weights (R, N)."""
        result = self.rows.new_zeros(weights.shape[0], self.rows.shape[1])
        for index, (order, columns) in enumerate(zip(self.contrast, self.columns, strict=True)):
            for tile in self.tiles(index):
                result.addmm_(weights[:, columns][:, tile], order.operands(tile))
        return result

    def weighted_sum_of(self, columns: Tensor, weights: Tensor) -> Tensor:
        """Return (R, D) Σ_j w_ij k_j over each row's own columns (R, k), for weights (R, k).

        Entries are read in place. This needs `entries_are_operands`.
        """
        result = self.rows.new_zeros(weights.shape[0], self.rows.shape[1])
        for order, own in zip(self.contrast, self.columns, strict=True):
            inside = (columns >= own.start) & (columns < own.stop)
            counts = inside.sum(dim=1)
            result += F.embedding_bag(
                order.all_indices()[columns[inside] - own.start],
                order.vectors,
                counts.cumsum(0) - counts,
                mode="sum",
                per_sample_weights=weights[inside],
            )
        return result

    def entries_are_operands(self) -> bool:
        """Return whether every entry is an operand without conversion."""
        dtypes = {self.problem.product_dtype, *(order.vectors.dtype for order in self.contrast)}
        return dtypes == {self.problem.compute_dtype}
