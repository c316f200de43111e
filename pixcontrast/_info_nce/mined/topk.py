"""The hardest of many, or those with the smallest keys, by partial sorts; the CPU alone.

`HardNegativeSampler.thresholds` is the rule; this comes to the same without a mask of what it
looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.random_keys import LARGEST_KEY, PairKeys
from pixcontrast.mining import HardNegativeSampler

# As many similarities may tie at a threshold before a stripe is masked instead.
MOST_TIES = 8
# Columns that are sorted out together; half as many groups as there are must then be wanted.
GROUP = 8


class Side(NamedTuple):
    """The selected positives, or negatives, of R anchors.

    Attributes:
        hardness: (R, k) of each one selected; −∞ for places that hold none.
        places: (R, k) among the columns it was selected from, or None: all of them, in order.
        least: (R, 1) the hardness it had to have.
        last_key: (R, 1) int32, the largest key it might have.
    """

    hardness: Tensor
    places: Tensor | None
    least: Tensor
    last_key: Tensor

    def put(self, among: Tensor, values: Tensor) -> Tensor:
        """`among` (R, n) overwritten: `values` (R, k) where they were selected, else 0."""
        if self.places is None:
            return among.copy_(values)
        return among.zero_().scatter_(1, self.places, values)


def select(
    mining: HardNegativeSampler,
    hardness: Tensor,
    available: Tensor,
    count: int | None,
    keys: PairKeys | None,
    fill_absent: Callable[[Tensor, float], None],
) -> Side | None:
    """What counts among (R, n) candidates; None where hardness ties at a threshold.

    Args:
        mining: the rule.
        hardness: −∞ for what is no candidate.
        available: (R, 1) how many candidates there are.
        count: how many are wanted, or None: all.
        keys: of the candidates, where there are any.
        fill_absent: overwrites what is no candidate in a tensor like `hardness`.
    """
    num_rows, num_columns = hardness.shape
    any_hardness = hardness.new_full((num_rows, 1), -torch.inf)
    any_key = available.new_full((num_rows, 1), LARGEST_KEY, dtype=torch.int32)
    if count is None or num_rows == 0 or num_columns == 0:
        return Side(hardness, None, any_hardness, any_key)
    if mining.strategy == "random":
        assert keys is not None
        drawn = keys.all()
        fill_absent(drawn, LARGEST_KEY)
        places, last_key = _smallest(drawn, available, count)
        return Side(hardness.gather(1, places), places, any_hardness, last_key)

    wanted = available.clamp(max=count)
    if mining.strategy == "semi-hard":
        wanted = torch.minimum(mining.pool_size(available), available)
    found = _hardest(hardness, wanted.clamp(min=1))
    if found is None:
        return None
    values, places, least = found
    if mining.strategy == "hardest":
        return Side(values, places, least, any_key)
    assert keys is not None
    pool = values > -torch.inf
    drawn = keys.at(places).masked_fill_(~pool, LARGEST_KEY)
    chosen, last_key = _smallest(drawn, pool.sum(dim=1, keepdim=True), count)
    return Side(values.gather(1, chosen), places.gather(1, chosen), least, last_key)


def _hardest(hardness: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The `wanted` (R, 1) hardest of each row, and what ties with the last of them.

    Values (R, k), −∞ for those that are not, their places, and the least that is. None where
    more tie than there is room for.
    """
    num_columns = hardness.shape[1]
    values, places = _largest(hardness, min(int(wanted.max()) + MOST_TIES, num_columns))
    too_many = values.shape[1] - wanted
    # Taken in no order: only the few too many are sorted.
    ascending = values.topk(int(too_many.max()) + 1, largest=False).values
    least = ascending.gather(1, too_many)
    if values.shape[1] < num_columns and bool((ascending[:, :1] >= least).any()):
        return None
    return values.masked_fill_(values < least, -torch.inf), places, least


def _smallest(drawn: Tensor, available: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where each row's `count` smallest keys stand, and the last of them, as far as it matters."""
    # Keys of one anchor are distinct, but for the largest, which what is no candidate has.
    values, places = _largest(drawn.bitwise_not_(), min(count, drawn.shape[1]))
    last_key = values.amin(dim=1, keepdim=True).bitwise_not_()
    return places, last_key.masked_fill_(available <= count, LARGEST_KEY)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their places, in no order.

    Where these are few, groups of columns are sorted out first, by their largest.
    """
    num_rows, num_columns = values.shape
    num_groups = num_columns // GROUP
    if 2 * count > num_groups:
        found, places = values.topk(count, sorted=False)
        return found, places
    grouped = values[:, : GROUP * num_groups].reshape(num_rows, GROUP, num_groups)
    _, groups = grouped.amax(dim=1).topk(count, sorted=False)
    columns = torch.arange(num_columns, device=values.device)
    firsts, rest = columns[: GROUP * num_groups : num_groups], columns[GROUP * num_groups :]
    places = groups[:, None, :] + firsts[:, None]
    places = torch.cat([places.flatten(1), rest.expand(num_rows, -1)], dim=1)
    among = values.gather(1, places)
    found, numbers = among.topk(count, sorted=False)
    return found, places.gather(1, numbers)
