"""Batches that are empty on every rank: a loss of 0, connected to the graph, and no error."""

import pytest
import torch
from pool import Pool


@pytest.mark.parametrize("bank", [None, "whole", "sharded"])
@pytest.mark.parametrize("kind", ["pixels", "regions"])
@pytest.mark.parametrize("gather", [True, False])
def test_no_image_on_any_rank(pool: Pool, kind: str, bank: str | None, gather: bool) -> None:
    options = {"pixel_slots": 4, "region_slots": 4, "sharded": bank == "sharded"}
    for dtype in (torch.float64, torch.float16):
        answers = pool.run(
            "jobs.loss_step",
            2,
            kind,
            [0, 0],
            dtype,
            bank=None if bank is None else options,
            gather=gather,
            weighted=True,
            steps=2,
        )
        for answer in answers:
            assert all(float(loss) == 0 for loss in answer["losses"])
            assert answer["gradient"].shape == (0, 8, 3, 4)
            assert answer["gradient"].dtype == dtype


@pytest.mark.parametrize("backend", ["tiled", "dense"])
def test_entries_of_the_bank_are_counted(pool: Pool, backend: str) -> None:
    """Of the shards of all ranks, as many as in a bank that every rank holds."""
    whole, sharded = (
        pool.run("jobs.entries_beside_no_pixel", 2, of_shards, backend)
        for of_shards in (False, True)
    )
    assert whole[0] == whole[1] > 0
    assert sharded[0] == sharded[1] > whole[0]
