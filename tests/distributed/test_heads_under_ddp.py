"""The gradient of a projection head that the loss calls, averaged by DistributedDataParallel."""

from pathlib import Path
from typing import Any

import dying
import heads
import pytest
import torch
from pool import Pool
from test_data_parallel import assert_same_bits
from torch import nn

from pixcontrast import MemoryBank, PixelContrastLoss, ProjectionHead

WAYS = ["shared", "wrapped", "inside"]
SIZES = {"2 ranks": [4, 2], "one without an image": [3, 0, 3], "one without an anchor": [3, 1, 2]}
BANKS: dict[str, dict[str, Any] | None] = {
    "no bank": None,
    "whole": {},
    "sharded": {"sharded": True},
}
OF_EACH_IMAGE = {
    "contrast_with": ("image", "pixels", "regions"),
    "reduction": "sum",
    "gather": False,
}
"""Contrast that does not depend on which images a rank has."""


def with_slots(bank: dict[str, Any] | None, size: int) -> dict[str, Any] | None:
    """Options of a bank of `heads.SLOTS` slots in all on so many ranks."""
    if bank is None:
        return None
    slots = heads.SLOTS // size if bank.get("sharded") else heads.SLOTS
    return {"pixel_slots": slots, "region_slots": slots, **bank}


def assert_alike(
    answers: list[dict[str, Any]], expected: list[dict[str, Any]], *, factor: float = 1.0
) -> None:
    """The mean loss over ranks is `factor` times that of others, and so are all gradients."""
    for answer in answers[1:]:
        for what in ("gradients", "parameters"):
            assert_same_bits(answer[what], answers[0][what])
    (losses, gradients), (other_losses, other_gradients) = (
        (torch.stack([torch.stack(answer["losses"]) for answer in of]).mean(0), of[0]["gradients"])
        for of in (answers, expected)
    )
    for one, other in zip([losses, *gradients], [other_losses, *other_gradients], strict=True):
        assert float(other.abs().max()) > 0
        # Batch normalization makes the gradient of a bias before it a rounding error.
        scale = max(factor * float(other.abs().max()), 1e-3)
        assert float((one - factor * other).abs().max()) <= 1e-10 * scale


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_one_process(
    pool: Pool, way: str, sizes: list[int], bank: str
) -> None:
    size = len(sizes)
    expected = heads.train(None, 0, [6], "alone", bank=with_slots(BANKS[bank], 1))
    options = {"bank": with_slots(BANKS[bank], size), "gather": True}
    answers = pool.run("heads.train", size, sizes, way, **options)
    assert_alike(answers, [expected])
    assert all(answer["stats"] for answer in answers)
    if bank == "whole":
        assert_same_bits(answers[1]["bank"], answers[0]["bank"])
    if bank == "sharded":  # not overwritten by those of rank 0
        assert answers[1]["bank"]["shard"].tolist() == [1, size]
        assert not torch.equal(answers[1]["bank"]["pixels"], answers[0]["bank"]["pixels"])


@pytest.mark.parametrize("bank", ["whole", "sharded"])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_without_gather(pool: Pool, way: str, bank: str) -> None:
    """The sum over images, of which DDP's mean is 1/W, for contrast within each image."""
    steps = 1  # the parameters of later steps differ
    alone = with_slots(BANKS[bank], 1)
    expected = heads.train(None, 0, [6], "alone", bank=alone, steps=steps, **OF_EACH_IMAGE)
    of_ranks = {"bank": with_slots(BANKS[bank], 3), "steps": steps, **OF_EACH_IMAGE}
    answers = pool.run("heads.train", 3, [3, 0, 3], way, **of_ranks)
    assert_alike(answers, [expected], factor=1 / 3)


@pytest.mark.parametrize("way", WAYS)
def test_batch_statistics_of_all_ranks(pool: Pool, way: str) -> None:
    """With statistics over the rows of all ranks, the gradients are those of one process."""
    options = {"norm": "all ranks", "all_valid": True}
    expected = heads.train(None, 0, [6], "alone", **options)
    answers = pool.run("heads.train", 3, [3, 0, 3], way, gather=True, **options)
    assert_alike(answers, [expected])


@pytest.mark.parametrize("way", WAYS)
def test_batch_statistics_of_each_rank(pool: Pool, way: str) -> None:
    """DDP averages the gradients; running statistics are those of rank 0."""
    options = {"norm": "batch", "gather": True, "bank": with_slots({}, 2)}
    expected = pool.run("heads.train", 2, [4, 2], "alone", **options)
    answers = pool.run("heads.train", 2, [4, 2], way, **options)
    assert_alike(answers, expected)
    for rank, answer in enumerate(answers):
        for what in ("losses", "bank", "buffers"):
            assert_same_bits(answer[what], expected[rank][what])


def test_a_shared_head_is_unused_by_forward(pool: Pool) -> None:
    """`find_unused_parameters=True` refuses it; the other ways and static graphs do not."""
    for answer in pool.run("heads.unused_parameters", 2, "shared", find_unused=True):
        assert "Expected to mark a variable ready only once" in answer
    for way in ("wrapped", "inside"):
        assert pool.run("heads.unused_parameters", 2, way, find_unused=True) == ["", ""]
    expected = heads.train(None, 0, [6], "alone")
    for find_unused in (False, True):
        options = {"static_graph": True, "find_unused": find_unused, "gather": True}
        assert_alike(pool.run("heads.train", 2, [4, 2], "shared", **options), [expected])


@pytest.mark.parametrize("head_of_its_own", [False, True])
def test_a_shared_head_under_fsdp(pool: Pool, head_of_its_own: bool) -> None:
    expected = heads.train(None, 0, [6], "alone", steps=2, learning_rate=0.0)
    arguments = ("heads.train_fully_sharded", 4, [2, 1, 1, 2])
    assert_alike(pool.run(*arguments, head_of_its_own=head_of_its_own), [expected])


def test_conversion_to_synchronized_statistics() -> None:
    """PyTorch's SyncBatchNorm runs on GPUs only, so that the conversion alone is tested."""
    head = ProjectionHead(6, 4)
    model = nn.ModuleDict({"trunk": nn.Conv2d(3, 6, 1), "head": head})
    loss = PixelContrastLoss(projection=head, bank=MemoryBank(3, 4, pixel_slots=5, region_slots=5))
    features, labels = torch.randn(2, 6, 5, 5), torch.randint(0, 3, (2, 5, 5))
    loss(features, labels)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    bank, weight = loss.bank, head.layers[1].weight

    converted = nn.SyncBatchNorm.convert_sync_batchnorm(loss)
    assert converted is loss
    assert isinstance(head.layers[1], nn.SyncBatchNorm)
    assert head.layers[1].weight is weight
    assert loss.projection is model["head"] is head
    assert loss.bank is bank
    assert_same_bits(dict(loss.state_dict()), before)
    loss(features, labels).backward()  # one process: it is ordinary batch normalization
    assert weight.grad is not None
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model)["head"] is loss.projection


@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_join_that_ends_with_the_first_rank(pool: Pool, way: str, bank: bool) -> None:
    """Every rank makes as many steps as the one with the fewest batches; then all raise."""
    answers = pool.run("heads.join", 2, [4, 2], way, bank=bank, throw=True)
    assert [len(answer["losses"]) for answer in answers] == [2, 2]
    assert "at least one rank that exhausted inputs" in answers[0]["told"]
    assert "exhausted all inputs" in answers[1]["told"]
    assert_same_bits(answers[0]["parameters"], answers[1]["parameters"])


@pytest.mark.parametrize("way", ["shared", "inside"])
def test_join_with_uneven_batches(pool: Pool, way: str) -> None:
    """With one DDP module, and without communication of the loss, ranks may stop early."""
    answers = pool.run("heads.join", 2, [3, 1], way, bank=False)
    assert [answer["told"] for answer in answers] == ["", ""]
    assert [len(answer["losses"]) for answer in answers] == [3, 1]
    assert_same_bits(answers[0]["gradients"][0], answers[1]["gradients"][0])
    assert_same_bits(answers[0]["parameters"], answers[1]["parameters"])


@pytest.mark.slow
@pytest.mark.parametrize(("way", "bank"), [("shared", True), ("wrapped", False)])
def test_join_that_fails(tmp_path: Path, way: str, bank: bool) -> None:
    """Communication of a loss, or of a second DDP module, that `Join` does not repeat."""
    answers = dying.start(heads.join_in_a_process, tmp_path, way, bank)
    assert "" not in answers.values()  # killed, or an error of the process group


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("way", WAYS)
def test_empty_batches_in_place_of_missing_ones(pool: Pool, way: str, sharded: bool) -> None:
    expected = heads.train(None, 0, [6], "alone", bank=with_slots({}, 1))
    bank = with_slots({"sharded": sharded}, 2)
    sizes = [[4, 2], [6, 0], [0, 6]]
    answers = pool.run("heads.train", 2, sizes, way, bank=bank, gather=True)
    assert_alike(answers, [expected])
