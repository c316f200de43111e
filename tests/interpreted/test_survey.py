"""The survey of contrast entries and the plan of splits, against plain Python."""

import itertools

import pytest
import torch

from pixcontrast._info_nce.fused import launch
from pixcontrast._info_nce.fused.kernels.blocks import SURVEY_ROWS, index_kernel

BLOCK = 8


def block_index(sizes):
    survey = torch.full((SURVEY_ROWS, len(sizes) + 1), -7, dtype=torch.int32)
    survey[2, :-1] = torch.tensor(sizes)
    index_kernel[(1,)](survey, len(sizes), BLOCK_N=BLOCK)
    return [row.tolist() for row in survey[3:]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("num_blocks", [1, 3, 4, 5, 13])
def test_block_index(num_blocks, seed):
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 3, (num_blocks,), generator=generator)
    sizes = torch.tensor([0, 3, BLOCK])[kinds].tolist()
    full_before, mixed_before, mixed, nonempty, starts, stops, counts = block_index(sizes)
    is_full = [size == BLOCK for size in sizes]
    is_mixed = [0 < size < BLOCK for size in sizes]
    assert full_before == list(itertools.accumulate(is_full, initial=0))
    assert mixed_before == list(itertools.accumulate(is_mixed, initial=0))
    expected_mixed = [block for block, one in enumerate(is_mixed) if one]
    assert mixed[: len(expected_mixed)] == expected_mixed
    expected_nonempty = [block for block, size in enumerate(sizes) if size]
    assert nonempty[: len(expected_nonempty)] == expected_nonempty
    groups = itertools.groupby(range(num_blocks), is_full.__getitem__)
    runs = [list(run) for full, run in groups if full]
    assert counts[0] == len(runs)
    assert starts[: len(runs)] == [run[0] for run in runs]
    assert stops[: len(runs)] == [run[-1] + 1 for run in runs]


@pytest.mark.parametrize(
    ("anchors", "entries", "expected"),
    [(1024, 190_000, 33), (4096, 190_000, 4), (16384, 190_000, 1), (1024, 64, 1)],
)
def test_splits_fill_a_card_of_132_processors(anchors, entries, expected, monkeypatch):
    monkeypatch.setattr(launch, "MIN_BLOCKS", 4)
    monkeypatch.setattr(launch, "SPLIT_COST", 5.0)
    found = launch.num_splits_for(132, -(-anchors // 128), -(-entries // 64))
    assert found == expected
