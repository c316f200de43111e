"""FSDP2, a GradScaler, averages of a model, and evaluation."""

from pathlib import Path

import pytest
import torch
import trainers
import training
from pool import Pool
from test_data_parallel import PLACES, assert_alike, assert_same_bits


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_fully_sharded(pool: Pool, sharded: bool) -> None:
    expected = training.train_every_pixel(None, 0, [6], "alone")
    answers = pool.run("trainers.fully_shard_every_pixel", 2, [4, 2], sharded=sharded)
    assert_alike(answers, [expected])
    for answer in answers:
        assert_same_bits([answer["saved"]], [dict(bank) for bank in answer["banks"]])
        assert_same_bits(answer["loaded"], answer["banks"])
        assert_same_bits(answer["loaded parameters"], answer["parameters"])
    names = {f"losses.0.bank.{name}" for name in answers[0]["saved"]}
    assert names < set(answers[0]["names on the host"])
    alike = torch.equal(answers[0]["saved"]["pixels"], answers[1]["saved"]["pixels"])
    assert alike is not sharded


def test_a_checkpoint_that_all_ranks_write(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run("trainers.checkpoint_of_all_ranks", 4, tmp_path)
    refused = []
    for rank, answer in enumerate(answers):
        assert_same_bits(answer["loaded"], answer["saved"])
        assert not torch.equal(answer["before"][1]["pixels"], answer["saved"][1]["pixels"])
        words = f"shard: expected that of rank {rank} of 4; got that of rank"
        refused.append(words in answer["told"][1])
    assert sum(refused) == 3  # all but the one whose number was written


@pytest.mark.parametrize(
    ("cause", "dtype"),
    [("scale", torch.float16), ("images", torch.float16), ("images", torch.bfloat16)],
    ids=str,
)
def test_an_overflow_is_skipped_by_all(pool: Pool, cause: str, dtype: torch.dtype) -> None:
    answers = pool.run("trainers.scaled_steps", 2, [4, 2], dtype, cause)
    first, overflow, *others = answers[0]
    assert overflow["scale"] == (2.0**126 if cause == "scale" else 2.0**9)
    assert_same_bits(overflow["parameters"], first["parameters"])
    for before, after in zip([overflow, *others], others, strict=False):
        assert after["scale"] == 2.0**10
        moved = zip(after["parameters"], before["parameters"], strict=True)
        assert not any(torch.equal(one, other) for one, other in moved)
    for one, other in zip(*answers, strict=True):
        for what in ("scale", "parameters"):
            assert_same_bits(one[what], other[what])
        assert_same_bits(one["banks"][0], other["banks"][0])
        for bank in one["banks"] + other["banks"]:
            assert bool(bank["pixels"].isfinite().all() & bank["regions"].isfinite().all())
    counts = [[bank["region_count"].sum() for bank in step["banks"]] for step in answers[0]]
    assert counts[0] < counts[1]  # what is finite came in


@pytest.mark.parametrize("use_buffers", [False, True], ids=["copied", "averaged"])
def test_averages_of_a_model_leave_the_bank_alone(pool: Pool, use_buffers: bool) -> None:
    for answer in pool.run("trainers.averaged", 2, [4, 2], use_buffers=use_buffers):
        assert_same_bits(answer["after"], answer["before"])
        assert_same_bits(answer["of the average"], answer["copied"])
        assert int(answer["copied"][0]["pixel_count"].sum()) > 0
        model, average = answer["norm"]
        assert torch.equal(model, average) is not use_buffers
        assert answer["group"]
        assert bool(answer["value"].isfinite())


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("place", PLACES)
def test_evaluation(pool: Pool, place: str, sharded: bool) -> None:
    expected = trainers.in_eval_mode(None, 0, [6], False, "alone")["losses"]
    answers = pool.run("trainers.in_eval_mode", 3, [4, 0, 2], sharded, place)
    mean = torch.stack([torch.stack(answer["losses"]) for answer in answers]).mean(dim=0)
    torch.testing.assert_close(mean, torch.stack(expected), rtol=1e-10, atol=0)
    for answer in answers:
        assert_same_bits(answer["after"], answer["before"])
