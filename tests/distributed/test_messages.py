"""The messages of a step are those that docs/scale.md computes, and none grows with the bank."""

from dataclasses import replace

import pytest
import torch
from pool import Pool

from benchmarks._ranks.costs import Step, bank_bytes, messages, slots
from pixcontrast import HardNegativeSampler

STEP = Step(
    ranks=2,
    images=2,
    anchors=24,
    dim=8,
    num_classes=3,
    pixels_per_image=4,
    pixel_slots=20,
    region_slots=10,
)
STEPS = {
    "whole": STEP,
    "whole, own batch alone": replace(STEP, gather=False),
    "sharded": replace(STEP, sharded=True),
    "sharded, own batch alone": replace(STEP, sharded=True, gather=False),
    "3 ranks": replace(STEP, ranks=3, sharded=True),
    "4 ranks": replace(STEP, ranks=4, sharded=True),
    "K": replace(STEP, anchors=37, sharded=True),
    "C": replace(STEP, num_classes=7, sharded=True),
    "D": replace(STEP, dim=13, sharded=True),
    "no regions": replace(STEP, region_slots=0),
    "bfloat16 bank": replace(STEP, bank_bytes=2, sharded=True),
    "float64": replace(STEP, bank_bytes=8, anchor_bytes=8, sum_bytes=8, sharded=True),
}


def counted(pool: Pool, step: Step, images: list[int]) -> list[list[tuple[str, int]]]:
    return pool.run("message_jobs.count", step.ranks, step, images)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_messages_are_those_that_are_computed(pool: Pool, step: Step) -> None:
    expected = [(message.collective, message.parcel) for message in messages(step)]
    assert len(expected) >= 2
    assert counted(pool, step, [step.images] * step.ranks) == [expected] * step.ranks


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_another_default_device_changes_nothing(pool: Pool, sharded: bool) -> None:
    step = replace(STEP, sharded=sharded)
    found, expected = (
        pool.run("message_jobs.with_default_device", step.ranks, step, device)
        for device in ("meta", None)
    )
    for of_rank, tensors in zip(found, expected, strict=True):
        assert len(of_rank) >= 2 + 6
        assert all(torch.equal(*pair) for pair in zip(of_rank, tensors, strict=True))


def test_one_rank_sends_nothing(pool: Pool) -> None:
    step = replace(STEP, ranks=1)
    assert messages(step) == []
    assert counted(pool, step, [step.images]) == [[]]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_no_message_grows_with_the_bank(pool: Pool, sharded: bool) -> None:
    step = replace(STEP, sharded=sharded)
    larger = replace(step, pixel_slots=50 * step.pixel_slots, region_slots=50 * step.region_slots)
    images = [step.images] * step.ranks
    assert counted(pool, larger, images) == counted(pool, step, images)


@pytest.mark.parametrize(
    ("strategy", "searches"), [("hardest", 1), ("semi-hard", 2), ("random", 1)]
)
def test_mining_over_shards_sends_sums_of_integers(
    pool: Pool, strategy: str, searches: int
) -> None:
    """For each side, by the digits of a similarity, of a key, or both; none grows with the bank."""
    step = replace(STEP, sharded=True)
    larger = replace(step, pixel_slots=50 * step.pixel_slots, region_slots=50 * step.region_slots)
    sampler = HardNegativeSampler(strategy=strategy, num_negatives=5, num_positives=2)
    arguments = (step.ranks, step, [step.images] * step.ranks, sampler)
    found = pool.run("message_jobs.count", *arguments)
    assert pool.run("message_jobs.count", step.ranks, larger, *arguments[2:]) == found
    everyone = 8 * step.ranks * step.anchors
    of_side = [everyone] * (strategy == "semi-hard") + [16 * everyone] * 8 * searches
    assert [size for name, size in found[0] if name == "sum"] == 2 * of_side
    seeds = [("all-gather", 8)] * (strategy != "hardest")
    rest = [message for message in found[0] if message[0] != "sum" and message not in seeds]
    assert rest == [(message.collective, message.parcel) for message in messages(step)]


def test_a_rank_with_fewer_images_sends_as_much_as_the_others(pool: Pool) -> None:
    step = replace(STEP, ranks=3, sharded=True, anchors=50)
    full, *others = counted(pool, step, [2, 0, 1])
    assert others == [full, full]
    assert full == [(message.collective, message.parcel) for message in messages(step)]


def test_four_shards_hold_four_times_one_ranks_slots_in_its_memory(pool: Pool) -> None:
    alone = replace(STEP, ranks=1, pixel_slots=30, region_slots=15, images=4)
    spread = replace(alone, ranks=4, sharded=True)
    ((held_alone, bytes_alone),) = pool.run("message_jobs.fill", 1, alone, 12)
    of_ranks = pool.run("message_jobs.fill", 4, spread, 12)
    assert held_alone == slots(alone)
    assert sum(held for held, _ in of_ranks) == 4 * held_alone
    counts = bytes_alone - bank_bytes(alone)
    assert counts == 4 * alone.num_classes * 8
    # And the two numbers that say which shard it is.
    assert [size for _, size in of_ranks] == [bytes_alone + 2 * 8] * 4
