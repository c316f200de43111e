"""The selection rule of a negative sampler, and its random keys.

The rule needs three quantities of the candidates, the positives or the negatives of an anchor:
their number, their k-th largest hardness, and the k-th smallest random key among those that are
hard enough. `Candidates` provides them; each form of the equation has an implementation of its own.

A random key is a function of the seed and the ids of an anchor and an entry. Forward and backward
compute the same keys for any tiles, and no key is stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.problem import Problem
from pixcontrast._tensors import widest_float
from pixcontrast._triton import takes_kernels
from pixcontrast.samplers import HardNegativeSampler

LARGEST_KEY = (1 << 31) - 1
# Keys that are computed at a time. About twenty passes read them, so they should fit the cache.
_MIXED_SIZE = 1 << 18


class Thresholds(NamedTuple):
    """The thresholds that a candidate must meet to be selected, (R, 1) for R anchors.

    A negative is selected if its similarity is at least `negative_logit` and its key is at most
    `negative_key`; a positive if its similarity is at most `positive_logit` and its key is at most
    `positive_key`. They are saved for the backward in place of a mask.
    """

    negative_logit: Tensor
    negative_key: Tensor
    positive_logit: Tensor
    positive_key: Tensor

    def of(self, rows: slice | Tensor) -> Thresholds:
        """Return the thresholds of some anchors."""
        return Thresholds(*(column[rows] for column in self))


class Candidates(Protocol):
    """The positives, or the negatives, of R anchors.

    Their hardness is the similarity of a negative, and minus the similarity of a positive.
    """

    def available(self) -> Tensor:
        """Return the number of candidates, (R, 1) integers."""

    def kth_hardness(self, k: Tensor) -> Tensor:
        """Return the k-th largest hardness, (R, 1), for k (R, 1) int64.

        For an anchor with fewer candidates, return any number that is not above their hardness.
        """

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        """Return the k-th smallest key, (R, 1) int32; `LARGEST_KEY` if there are fewer.

        With `min_hardness` (R, 1), only candidates of at least this hardness are considered.
        """


def find_threshold(
    sampler: HardNegativeSampler, candidates: Candidates, count: int | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the least hardness and the largest key of the candidates to select, (R, 1) each.

    `count` is the number to select for each anchor; None: all. `like` has R rows and the dtype and
    device of the similarities. If it has no element, there is no candidate.
    """

    def all_of(value: float, dtype: torch.dtype) -> Tensor:
        return like.new_full((like.shape[0], 1), value, dtype=dtype)

    if count is None or like.numel() == 0:
        return all_of(-torch.inf, like.dtype), all_of(LARGEST_KEY, torch.int32)
    if sampler.strategy == "hardest":
        hardness = candidates.kth_hardness(all_of(count, torch.int64))
        return hardness, all_of(LARGEST_KEY, torch.int32)
    if sampler.strategy == "random":
        return all_of(-torch.inf, like.dtype), candidates.kth_key(count, None)
    # In floating point 0.07 · 100 is 7.000000000000001; without the margin its ceiling is 8.
    available = candidates.available().to(widest_float(like.device))
    pool_size = (sampler.ratio * available - 1e-6).ceil().clamp(min=1).to(torch.int64)
    min_hardness = candidates.kth_hardness(pool_size)
    return min_hardness, candidates.kth_key(count, min_hardness)


def find_thresholds(
    sampler: HardNegativeSampler, negatives: Candidates, positives: Candidates, like: Tensor
) -> Thresholds:
    """Return the thresholds of R anchors, see `find_threshold`."""
    of_negatives = find_threshold(sampler, negatives, sampler.num_negatives, like)
    hardness, key = find_threshold(sampler, positives, sampler.num_positives, like)
    return Thresholds(*of_negatives, -hardness, key)


def allocate_thresholds(problem: Problem) -> Thresholds:
    """Return the thresholds (M, 1) of M ignored anchors."""
    logit = problem.anchors.new_zeros(problem.labels.numel(), 1, dtype=problem.compute_dtype)
    key = torch.full_like(logit, LARGEST_KEY, dtype=torch.int32)
    return Thresholds(logit, key, logit.clone(), key.clone())


def apply_thresholds(
    thresholds: Thresholds, logits: Tensor, masks: Masks, keys: Tensor | None
) -> Masks:
    """Return the candidates in a tile that meet the thresholds of its rows.

    The similarities must be bit-identical to those that the thresholds were computed from.
    """
    # NaN is neither above nor below, so that it is selected and reaches the loss. For booleans
    # a > b is a & ~b.
    positive = masks.positive > (logits > thresholds.positive_logit)
    negative = masks.negative > (logits < thresholds.negative_logit)
    if keys is not None:
        positive = positive & (keys <= thresholds.positive_key)
        negative = negative & (keys <= thresholds.negative_key)
    return Masks(positive, negative)


class RowCandidates:
    """Candidates in complete rows: hardness, mask of the candidates, and keys, (R, N) each.

    `max_k` is an upper bound of the k of `kth_hardness`, at most N, that the host knows.
    """

    def __init__(self, hardness: Tensor, mask: Tensor, keys: Tensor | None, max_k: int) -> None:
        self._hardness = hardness.masked_fill(~mask, -torch.inf)
        self._mask = mask
        self._keys = keys
        self._max_k = max_k

    def available(self) -> Tensor:
        return self._mask.sum(dim=1, keepdim=True)

    def kth_hardness(self, k: Tensor) -> Tensor:
        hardest = self._hardness.topk(self._max_k, dim=1).values
        return hardest.gather(1, k.clamp(max=self._max_k) - 1)

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        assert self._keys is not None  # every strategy with keys has drawn a seed
        pool = self._mask
        if min_hardness is not None:
            pool = pool & (self._hardness >= min_hardness)
        keys = self._keys.masked_fill(~pool, LARGEST_KEY)
        return keys.topk(min(k, keys.shape[1]), dim=1, largest=False).values[:, -1:]


def thresholds_of_rows(
    sampler: HardNegativeSampler, logits: Tensor, masks: Masks, keys: Tensor | None
) -> Thresholds:
    """Return the thresholds of complete rows of similarities (R, N)."""
    num_columns = logits.shape[1]

    def candidates(hardness: Tensor, mask: Tensor, count: int | None) -> RowCandidates:
        max_k = count or 0
        if sampler.strategy == "semi-hard":
            max_k = max(1, math.ceil(sampler.ratio * num_columns - 1e-6))
        return RowCandidates(hardness, mask, keys, min(max_k, num_columns))

    negatives = candidates(logits, masks.negative, sampler.num_negatives)
    positives = candidates(-logits, masks.positive, sampler.num_positives)
    return find_thresholds(sampler, negatives, positives, logits)


def select_from_rows(
    sampler: HardNegativeSampler, logits: Tensor, masks: Masks, keys: Tensor | None
) -> Masks:
    """Return the selected candidates of the complete similarities and keys (M, N)."""
    thresholds = thresholds_of_rows(sampler, logits, masks, keys)
    return apply_thresholds(thresholds, logits, masks, keys)


class PairKeys(NamedTuple):
    """The keys of R anchors with T entries. The keys of one anchor are distinct.

    Attributes:
        row_bits: (R, 1) int32, distinct.
        column_bits: (T,) int32, distinct.
    """

    row_bits: Tensor
    column_bits: Tensor

    @classmethod
    def of(cls, seed: Tensor, anchor_ids: Tensor, entry_ids: Tensor) -> PairKeys:
        """Return the keys of anchors and entries with these ids; `seed` is () int64, at least 0."""
        return cls(anchor_bits(seed, anchor_ids)[:, None], entry_bits(seed, entry_ids))

    def part(self, rows: slice, columns: slice | Tensor) -> PairKeys:
        """Return the keys of some anchors with some entries."""
        return PairKeys(self.row_bits[rows], self.column_bits[columns])

    def all(self) -> Tensor:
        """Compute all keys, (R, T) int32."""
        num_rows, num_columns = self.row_bits.shape[0], self.column_bits.shape[0]
        keys = self.row_bits.new_empty(num_rows, num_columns)
        height = max(1, _MIXED_SIZE // max(1, num_columns))
        for start in range(0, num_rows, height):
            rows = slice(start, start + height)
            keys[rows] = _mix_(self.row_bits[rows] ^ self.column_bits)
        return keys

    def at(self, columns: Tensor) -> Tensor:
        """Compute the keys of each row's own columns, given as (R, k); (R, k) int32."""
        return _mix_(self.row_bits ^ self.column_bits[columns])


def anchor_bits(seed: Tensor, ids: Tensor) -> Tensor:
    """Return the `PairKeys.row_bits` of anchors with these ids, (R,)."""
    if takes_kernels(ids):
        from pixcontrast._info_nce.key_kernel import write_bits

        return write_bits(seed, ids, of_anchors=True)
    low, high = _halves(seed)
    return _mix_(_mix_(ids.to(torch.int32) + high).bitwise_xor_(low))


def entry_bits(seed: Tensor, ids: Tensor) -> Tensor:
    """Return the `PairKeys.column_bits` of entries with these ids, (T,)."""
    if takes_kernels(ids):
        from pixcontrast._info_nce.key_kernel import write_bits

        return write_bits(seed, ids, of_anchors=False)
    return _mix_(ids.to(torch.int32) + _halves(seed)[0])


def _halves(seed: Tensor) -> tuple[Tensor, Tensor]:
    low, high = ((seed >> shift & LARGEST_KEY).to(torch.int32) for shift in (0, 31))
    return low, high


def _mix_(bits: Tensor) -> Tensor:
    """Mix 32 bits in place, one to one: "lowbias32" of Wellons' hash prospector (2018).

    The multipliers are written as signed integers with the same bits.
    """
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1))
        bits.mul_(multiplier)
    return bits.bitwise_xor_((bits >> 16).bitwise_and_((1 << 16) - 1))
