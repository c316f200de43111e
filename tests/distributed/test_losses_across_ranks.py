"""W ranks are one rank with the whole batch: loss, gradient and bank."""

import itertools
from typing import Any

import jobs
import pytest
import torch
from pool import Pool

SIZES = {1: [6], 2: [4, 2], 3: [3, 0, 3], 4: [2, 1, 1, 2]}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def over_ranks(answers: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over ranks of losses and gradient, as DistributedDataParallel averages."""
    losses = torch.stack([torch.stack(answer["losses"]) for answer in answers]).mean(dim=0)
    gradient = torch.cat([answer["gradient"] for answer in answers]) / len(answers)
    return losses, gradient


def assert_alike(actual: tuple, expected: tuple, dtype: torch.dtype) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert float(other.abs().max()) > 0
        error = float((one - other).abs().max() / other.abs().max())
        assert error <= TOLERANCE[dtype], error


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", ["pixels", "regions"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_batch_of_all_ranks(pool: Pool, size: int, kind: str, dtype: torch.dtype) -> None:
    for denominator, weighted in itertools.product(("negatives", "all"), (False, True)):
        options = {"denominator": denominator, "weighted": weighted}
        expected = over_ranks([jobs.loss_step(None, 0, kind, [6], dtype, **options)])
        for reduction in ("mean", "sum"):
            if reduction == "sum":
                expected = over_ranks(
                    [jobs.loss_step(None, 0, kind, [6], dtype, reduction="sum", **options)]
                )
            answers = pool.run(
                "jobs.loss_step", size, kind, SIZES[size], dtype, reduction=reduction, **options
            )
            actual = over_ranks(answers)
            if reduction == "sum":  # W·S_r on each: the mean over ranks is the sum over all
                pass
            assert_alike(actual, expected, dtype)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", ["pixels", "regions"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_bank_of_all_ranks(pool: Pool, size: int, kind: str, sharded: bool) -> None:
    slots = 60
    for denominator, dtype in itertools.product(
        ("negatives", "all"), (torch.float64, torch.float32)
    ):
        options = {"denominator": denominator, "steps": 4}
        bank = {"pixel_slots": slots, "region_slots": slots}
        expected = over_ranks([jobs.loss_step(None, 0, kind, [6], dtype, bank=bank, **options)])
        if sharded:
            bank = {
                "pixel_slots": slots // size,
                "region_slots": slots // size,
                "sharded": True,
            }
        answers = pool.run("jobs.loss_step", size, kind, SIZES[size], dtype, bank=bank, **options)
        assert_alike(over_ranks(answers), expected, dtype)
