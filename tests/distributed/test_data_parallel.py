"""DistributedDataParallel with its defaults: exact gradients, and banks that it leaves alone."""

from typing import Any

import pytest
import torch
import training
from pool import Pool

PLACES = ["inside", "outside"]


def assert_same_bits(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def without_ddp(pool: Pool) -> list[dict[str, Any]]:
    return pool.run("training.train_two_banks", 2, [4, 2], "alone")


@pytest.mark.parametrize("place", PLACES)
def test_banks_are_those_of_a_run_without_it(
    pool: Pool, place: str, without_ddp: list[dict[str, Any]]
) -> None:
    answers = pool.run("training.train_two_banks", 2, [4, 2], place)
    for answer, expected in zip(answers, without_ddp, strict=True):
        assert answer["broadcast"] == answer["norm"] > 0
        for what in ("losses", "parameters", "banks"):
            assert_same_bits(answer[what], expected[what])

    (whole, shard_0), (other_whole, shard_1) = (answer["banks"] for answer in answers)
    assert_same_bits(whole, other_whole)
    assert int(whole["pixel_count"].max()) == training.SLOTS  # it has come round
    for queue in ("pixels", "regions"):
        assert_same_bits(shard_0[queue], whole[queue][:, 0::2])
        assert_same_bits(shard_1[queue], whole[queue][:, 1::2])
        assert not torch.equal(shard_0[queue], shard_1[queue])


def over_ranks(answers: list[dict[str, Any]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The mean over ranks of the losses, and the gradients, which every rank has alike."""
    for answer in answers[1:]:
        assert_same_bits(answer["gradients"], answers[0]["gradients"])
    losses = torch.stack([torch.stack(answer["losses"]) for answer in answers]).mean(dim=0)
    return losses, [part for step in answers[0]["gradients"] for part in step]


def assert_alike(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    (losses, gradients), (other_losses, other_gradients) = over_ranks(actual), over_ranks(expected)
    for one, other in zip([losses, *gradients], [other_losses, *other_gradients], strict=True):
        assert float(other.abs().max()) > 0
        assert float((one - other).abs().max() / other.abs().max()) <= 1e-10


@pytest.mark.parametrize("sizes", [[3, 3], [4, 0, 2]], ids=str)
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("place", PLACES)
def test_gradients_are_those_of_one_process(
    pool: Pool, sizes: list[int], sharded: bool, place: str
) -> None:
    expected = training.train_every_pixel(None, 0, [6], "alone")
    actual = pool.run("training.train_every_pixel", len(sizes), sizes, place, sharded=sharded)
    assert_alike(actual, [expected])


@pytest.mark.parametrize("place", PLACES)
def test_accumulated_gradients(pool: Pool, place: str) -> None:
    expected = training.train_every_pixel(None, 0, [6], "alone", micro_batches=3)
    arguments = ("training.train_every_pixel", 2, [4, 2], place)
    for no_sync in (False, True):
        actual = pool.run(*arguments, micro_batches=3, no_sync=no_sync)
        assert_alike(actual, [expected])
        for answer in actual:
            # Once a micro-batch, and not once more where gradients are exchanged.
            assert_same_bits(answer["counts"], expected["counts"])
            assert len({int(count.sum()) for count in answer["counts"]}) == 6
