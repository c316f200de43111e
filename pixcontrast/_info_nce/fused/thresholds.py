"""Find the thresholds of mining by kernels. The number of launches does not depend on values.

A selection is one pass over the entries if they are at most `COLUMNS`; otherwise a sample of that
many, a pass that counts candidates and a pass that stores the few that are left. Two more passes
end at once, except for anchors whose threshold is far from the estimate or has many ties.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._distributed import Ranks, add_up, gather
from pixcontrast._info_nce.fused.configurations import Configuration, for_keys
from pixcontrast._info_nce.fused.kernels.radix_select import Search, advance_kernel, count_kernel
from pixcontrast._info_nce.fused.launch import launch_rows, launch_splits, plan_splits
from pixcontrast._info_nce.fused.layout import Layout, sample_entries
from pixcontrast._info_nce.thresholds import Thresholds, find_thresholds
from pixcontrast._triton import ceil_div
from pixcontrast.samplers import HardNegativeSampler

COLUMNS, COLUMNS_OF_RANKS = 2048, 256
"""Numbers of each anchor: its histogram, or stored candidates. Ranks send the smaller one."""


def search_tile(num_columns: int) -> Configuration:
    """Return the tile of the kernel that advances a search; with more rows it spills registers."""
    return Configuration(max(2, 2048 // num_columns), 1, 8, 3)


class Source(NamedTuple):
    """Anchors and their candidates on this rank.

    `rows` (M,) is the index of each sorted anchor among the R anchors of all sources.
    """

    layout: Layout
    rows: Tensor


def select_thresholds(
    sampler: HardNegativeSampler, sources: list[Source], ranks: Ranks | None = None
) -> Thresholds:
    """Return the thresholds (R, 1) of R anchors, similarities to the base 2.

    The first source has all R anchors. Other `ranks` may have candidates of the same anchors, and
    as many entries in their first sources.
    """
    available = _count_candidates(sources, ranks) if sampler.strategy == "semi-hard" else None
    size = COLUMNS if ranks is None else COLUMNS_OF_RANKS // ranks.size
    sample = sample_entries(sources[0].layout, size)
    like = torch.empty_like(sources[0].rows, dtype=torch.float32)[:, None]
    negatives = _Candidates(sources, sample, available, ranks, like, positive=False)
    positives = replace(negatives, positive=True)
    return find_thresholds(sampler, negatives, positives, like)


def _count_candidates(sources: list[Source], ranks: Ranks | None) -> Tensor:
    """Return the number of negatives and of positives of each anchor, (2, R)."""
    counts = sources[0].rows.new_zeros(2, len(sources[0].rows), dtype=torch.int32)
    for layout, rows in sources:
        classes = layout.anchors.classes
        # Class −1 has index 0. Integer sums do not depend on the order of the atomic additions.
        of_class = classes.new_zeros(2 * len(classes) + 3)
        one = classes.new_ones(1)
        for tensor in layout.contrast:
            of_class.index_add_(0, tensor.entries.classes + 1, one.expand(len(tensor)))
        same = of_class.index_select(0, classes + 1)
        negatives = of_class[1:].sum(dtype=torch.int32) - same
        num_self = sum(tensor.is_anchors for tensor in layout.contrast)
        counts.index_add_(1, rows, torch.stack([negatives, same - num_self]))
    return counts if ranks is None else add_up(ranks, counts)


@dataclass(frozen=True)
class _Candidates:
    """The positives, or the negatives, of R anchors; see `thresholds.Candidates`."""

    sources: list[Source]
    sample: tuple[Layout, int] | None
    num_available: Tensor | None
    ranks: Ranks | None
    like: Tensor
    positive: bool

    def available(self) -> Tensor:
        assert self.num_available is not None  # of every strategy that asks
        return self.num_available[int(self.positive), :, None]

    def kth_hardness(self, k: Tensor) -> Tensor:
        return self._find(k.to(torch.int32), None, torch.empty_like(self.like))

    def kth_key(self, k: int, min_hardness: Tensor | None) -> Tensor:
        found = torch.empty_like(self.like, dtype=torch.int32)
        return self._find(torch.full_like(found, k), min_hardness, found)

    def _find(self, k: Tensor, min_hardness: Tensor | None, found: Tensor) -> Tensor:
        """Write the k-th largest hardness, or the k-th smallest key if `found` has integers."""
        first, ranks = self.sources[0], self.ranks
        by_key = found.dtype == torch.int32
        num_columns = COLUMNS if ranks is None else COLUMNS_OF_RANKS
        # Multiples of 16, so that every address is aligned.
        num_rows = 16 * ceil_div(len(k), 16)
        numbers = k.new_zeros((num_columns + 5) * num_rows)
        columns = numbers[: num_columns * num_rows].view(num_rows, num_columns)
        search = Search(columns, *numbers[columns.numel() :].view(5, num_rows))
        rounds = [(self.sources, 0)]
        if self.sample is not None or ranks is not None:
            # Without a sample the first estimate is wrong; the other rounds find any integer.
            num_histograms = ceil_div(32, num_columns.bit_length() - 1)
            rounds = [([], 1), *(1 + num_histograms) * rounds]
        if self.sample is not None:
            layout, stride = self.sample
            rounds[0] = [first._replace(layout=layout)], stride
        for sources, stride in rounds:
            for layout, rows in sources:
                configuration = layout.configurations.denominator
                if by_key and min_hardness is None:
                    configuration = for_keys(configuration)
                plan = plan_splits(layout, configuration)
                launch_splits(
                    count_kernel,
                    layout,
                    configuration,
                    [splits._replace(weighted=False) for splits in plan],
                    (min_hardness, rows, search, num_columns, int(self.positive)),
                    by_key,
                )
            if ranks is not None and self.sample is not None and stride > 0:
                size = num_columns // ranks.size
                (samples,) = gather(ranks, [search.columns[:, :size]])
                search.columns[:, : ranks.size * size] = samples.movedim(0, 1).flatten(1)
            elif ranks is not None:
                summed = numbers[: (num_columns + 1) * num_rows]
                summed.copy_(add_up(ranks, summed))
            tile = search_tile(num_columns)
            most_stored = num_columns if ranks is None else 0
            launch_rows(
                advance_kernel,
                (ceil_div(len(k), tile.rows),),
                first.layout,
                tile,
                (search, len(k), k, found, stride, most_stored),
                *(by_key, num_columns, tile.rows),
            )
        return found
