"""Which contrast entries count for each anchor: the options and the exact selection rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pixcontrast._check import check_choice, check_count, check_fraction
from pixcontrast._dtypes import widest_float
from pixcontrast._keys import LARGEST_KEY, PairKeys

Strategy = Literal["hardest", "semi-hard", "random"]


class Thresholds(NamedTuple):
    """What an entry must meet, per anchor, to count: (R, 1) each.

    A negative counts when its similarity is at least `negative_logit` and its key at most
    `negative_key`; a positive when its similarity is at most `positive_logit` and its key at
    most `positive_key`. Saved for a backward pass in place of a mask.
    """

    negative_logit: Tensor
    negative_key: Tensor
    positive_logit: Tensor
    positive_key: Tensor


@dataclass(frozen=True, kw_only=True)
class HardNegativeSampler:
    """Per anchor, which negatives and which positives count.

    The selected sets take the place of P_i and N_i, in both denominators. The selection is
    exact; it is made row by row over streamed similarities, never over an M×N matrix (but for
    `backend="dense"`). Entries that tie with the last one selected count as well, and those
    within rounding of it may fall either way. A plain immutable object: options and no state.

    Args:
        strategy: `"hardest"`: the `num_negatives` most similar negatives and the
            `num_positives` least similar positives. `"semi-hard"`: that many drawn at random
            without replacement out of the hardest `ceil(ratio · available)` (at least 1) of
            each. `"random"`: that many at random out of all. These are the sampling strategies
            of Wang et al., ICCV 2021, section 3.2.
        ratio: the share of the available entries that semi-hard mining draws from, in (0, 1].
        num_negatives: how many negatives, at least 1; None takes every negative.
        num_positives: how many positives, at least 1; None takes every positive.

    Raises:
        ValueError, TypeError: for an option out of its range; the message names it.

    Example:
        >>> import torch
        >>> from pixcontrast import HardNegativeSampler
        >>> from pixcontrast.functional import info_nce
        >>> anchors = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
        >>> mining = HardNegativeSampler(strategy="hardest", num_negatives=3, num_positives=None)
        >>> info_nce(anchors, labels, mining=mining).shape
        torch.Size([])
    """

    strategy: Strategy = "semi-hard"
    ratio: float = 0.1
    num_negatives: int | None = 2048
    num_positives: int | None = 1024

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, ("hardest", "semi-hard", "random"))
        check_fraction("ratio", self.ratio, above_zero=True)
        # A tensor is not multiplied by every number that Python has, as by a Fraction.
        object.__setattr__(self, "ratio", float(self.ratio))
        if self.num_negatives is not None:
            check_count("num_negatives", self.num_negatives, at_least=1)
        if self.num_positives is not None:
            check_count("num_positives", self.num_positives, at_least=1)

    def draw_seed(self, device: torch.device, generator: torch.Generator | None) -> Tensor | None:
        """One number from the generator, on its device; None where nothing is left to chance."""
        if self.strategy == "hardest":
            return None
        largest = torch.iinfo(torch.int64).max
        return torch.randint(largest, (), generator=generator, device=device)

    def select(
        self, logits: Tensor, positive: Tensor, negative: Tensor, *, seed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The (M, N) masks of the positives and negatives that count, for all rows at once."""
        row_numbers, column_numbers = (
            torch.arange(size, device=logits.device) for size in logits.shape
        )
        pairs = None if seed is None else PairKeys.of(seed, row_numbers, column_numbers)
        keys = None if pairs is None else pairs.all()
        thresholds = self.thresholds(logits, positive, negative, keys)
        return keep(thresholds, logits, positive, negative, keys)

    def thresholds(
        self, logits: Tensor, positive: Tensor, negative: Tensor, keys: Tensor | None
    ) -> Thresholds:
        """The thresholds of complete rows: `logits` (R, N) against every entry there is."""
        negative_hardness, negative_key = self._side(logits, negative, keys, self.num_negatives)
        positive_hardness, positive_key = self._side(-logits, positive, keys, self.num_positives)
        return Thresholds(negative_hardness, negative_key, -positive_hardness, positive_key)

    def _side(
        self, hardness: Tensor, candidate: Tensor, keys: Tensor | None, count: int | None
    ) -> tuple[Tensor, Tensor]:
        """The least hardness and the largest key with which a candidate still counts."""
        num_rows, num_columns = hardness.shape
        any_hardness = hardness.new_full((num_rows, 1), -torch.inf)
        any_key = torch.full((num_rows, 1), LARGEST_KEY, dtype=torch.int32, device=hardness.device)
        if count is None or num_columns == 0 or num_rows == 0:
            return any_hardness, any_key
        if self.strategy == "random":
            return any_hardness, _kth_smallest_key(keys, candidate, count)

        hardness = hardness.masked_fill(~candidate, -torch.inf)
        if self.strategy == "hardest":
            return hardness.topk(min(count, num_columns), dim=1).values[:, -1:], any_key

        available = candidate.sum(dim=1, keepdim=True)
        pool_size = self.pool_size(available)
        # Of all columns, and of at most as many as there are: a host number, and no wait.
        largest_pool = max(1, math.ceil(self.ratio * num_columns - 1e-6))
        hardest = hardness.topk(min(largest_pool, num_columns), dim=1).values
        least = hardest.gather(1, pool_size.clamp(max=hardest.shape[1]) - 1)
        pool = candidate & (hardness >= least)
        return least, _kth_smallest_key(keys, pool, count)

    def pool_size(self, available: Tensor) -> Tensor:
        """How many of the hardest semi-hard mining draws from, out of so many."""
        # In floating point 0.07 · 100 is 7.000000000000001, and 7% of 100 are 7.
        wide = available.to(widest_float(available.device))
        return (self.ratio * wide - 1e-6).ceil().clamp(min=1).to(torch.int64)


def keep(
    thresholds: Thresholds,
    logits: Tensor,
    positive: Tensor,
    negative: Tensor,
    keys: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The candidates that meet the thresholds, in any tile of the rows they were made for.

    The similarities have to be bit-identical to those the thresholds were taken from.
    """
    positive = positive & (logits <= thresholds.positive_logit)
    negative = negative & (logits >= thresholds.negative_logit)
    if keys is not None:
        positive = positive & (keys <= thresholds.positive_key)
        negative = negative & (keys <= thresholds.negative_key)
    return positive, negative


def _kth_smallest_key(keys: Tensor | None, pool: Tensor, count: int) -> Tensor:
    """(R, 1) the count-th smallest key of each row's pool; the largest where the pool is less."""
    assert keys is not None  # every strategy that comes here draws a seed
    keys = keys.masked_fill(~pool, LARGEST_KEY)
    return keys.topk(min(count, keys.shape[1]), dim=1, largest=False).values[:, -1:]
