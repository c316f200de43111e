"""The hardest candidates, or those with the smallest keys, by partial sorts on the CPU.

The thresholds are those of `thresholds.RowCandidates`, without a mask of all candidates. The
selected candidates are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pixcontrast._info_nce.random_keys import LARGEST_KEY, PairKeys
from pixcontrast._info_nce.thresholds import find_threshold
from pixcontrast.mining import HardNegativeSampler

# The partial sort has room for this many candidates that tie at a threshold.
MAX_TIES = 8
# Columns are preselected in groups of this size, if more than twice k groups exist.
GROUP = 8


class TooManyTiesError(Exception):
    """More candidates tie at a threshold than the partial sort has room for."""


class TopK:
    """Candidates of R anchors; after `select`, the selected ones.

    Args:
        hardness (Tensor): (R, N); −∞ for columns that are no candidates.
        available (Tensor): (R, 1) int64, number of candidates.
        keys (PairKeys, optional): the random keys of all columns.
        fill_others (callable): overwrites the columns that are no candidates in a tensor (R, N).

    Attributes:
        hardness (Tensor): (R, k), of each selected candidate; −∞ where there is none.
        columns (Tensor, optional): (R, k), column of each selected candidate; None: all columns, in
            order.
        min_hardness, max_key (Tensor): (R, 1), the thresholds.
    """

    min_hardness: Tensor
    max_key: Tensor

    def __init__(
        self,
        hardness: Tensor,
        available: Tensor,
        keys: PairKeys | None,
        fill_others: Callable[[Tensor, float], None],
    ) -> None:
        self.hardness = hardness
        self.columns: Tensor | None = None
        self._available = available
        self._keys = keys
        self._fill_others = fill_others

    @classmethod
    def select(
        cls,
        sampler: HardNegativeSampler,
        count: int | None,
        hardness: Tensor,
        available: Tensor,
        keys: PairKeys | None,
        *,
        fill_others: Callable[[Tensor, float], None],
    ) -> TopK:
        """Select `count` candidates for each anchor; see `find_threshold` and the class."""
        candidates = cls(hardness, available, keys, fill_others)
        found = find_threshold(sampler, candidates, count, hardness)
        candidates.min_hardness, candidates.max_key = found
        return candidates

    def available(self) -> Tensor:
        return self._available

    def kth_hardness(self, k: Tensor) -> Tensor:
        """Select the k hardest, and what ties with the last of them.

        Raises:
            TooManyTiesError: if more tie than there is room for.
        """
        k = torch.minimum(k, self._available).clamp(min=1)
        num_columns = self.hardness.shape[1]
        values, columns = _largest(self.hardness, min(int(k.max()) + MAX_TIES, num_columns))
        num_extra = values.shape[1] - k
        # The values are in no order; only the smallest few are sorted.
        ascending = values.topk(int(num_extra.max()) + 1, largest=False).values
        least = ascending.gather(1, num_extra)
        if values.shape[1] < num_columns and bool((ascending[:, :1] >= least).any()):
            raise TooManyTiesError
        self.hardness, self.columns = values.masked_fill_(values < least, -torch.inf), columns
        return least

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        """Select the k smallest keys of what `kth_hardness` has selected, or of all candidates."""
        assert self._keys is not None  # every strategy with keys has drawn a seed
        if min_hardness is None or self.columns is None:
            keys, available = self._keys.all(), self._available
            self._fill_others(keys, LARGEST_KEY)
        else:
            pool = self.hardness > -torch.inf
            keys = self._keys.at(self.columns).masked_fill_(~pool, LARGEST_KEY)
            available = pool.sum(dim=1, keepdim=True)
        # Only `LARGEST_KEY` occurs more than once in a row.
        values, chosen = _largest(keys.bitwise_not_(), min(k, keys.shape[1]))
        self.hardness = self.hardness.gather(1, chosen)
        self.columns = chosen if self.columns is None else self.columns.gather(1, chosen)
        last_key = values.amin(dim=1, keepdim=True).bitwise_not_()
        return last_key.masked_fill_(available <= k, LARGEST_KEY)

    def put_into(self, rows: Tensor, values: Tensor) -> Tensor:
        """Overwrite rows (R, N): values (R, k) for the selected candidates, 0 elsewhere."""
        if self.columns is None:
            return rows.copy_(values)
        return rows.zero_().scatter_(1, self.columns, values)


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their columns, in no order.

    For small k, groups of columns are preselected by their largest value.
    """
    num_rows, num_columns = values.shape
    num_groups = num_columns // GROUP
    if 2 * k > num_groups:
        largest, columns = values.topk(k, sorted=False)
        return largest, columns
    grouped = values[:, : GROUP * num_groups].reshape(num_rows, GROUP, num_groups)
    _, groups = grouped.amax(dim=1).topk(k, sorted=False)
    every = torch.arange(num_columns, device=values.device)
    firsts, rest = every[: GROUP * num_groups : num_groups], every[GROUP * num_groups :]
    columns = groups[:, None, :] + firsts[:, None]
    columns = torch.cat([columns.flatten(1), rest.expand(num_rows, -1)], dim=1)
    among = values.gather(1, columns)
    largest, chosen = among.topk(k, sorted=False)
    return largest, columns.gather(1, chosen)
