"""What must not be done across ranks is said in words, and leaves no rank waiting."""

import re
from typing import Any

import pytest
import torch
import wrong_use
from jobs import CLASSES, Batch, make_bank, make_head
from pool import Pool
from test_data_parallel import assert_same_bits
from torch import nn

from pixcontrast import PixelContrastLoss, RegionContrastLoss

OTHER_CALLS = "expected every rank of the process group to make the same call"


def assert_told(answer: tuple[str, str], error: type[Exception], words: str) -> None:
    kind, text = answer
    assert kind == error.__name__, answer
    assert re.search(words, text), text


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_in_different_calls(pool: Pool, size: int, sharded: bool) -> None:
    for answer in pool.run("wrong_use.different_calls", size, sharded=sharded):
        assert_told(answer["told"], RuntimeError, OTHER_CALLS)
        assert answer["untouched"]
        assert answer["after"] == ("", "")


@pytest.mark.parametrize("what", ["slots", "temperature", "dtype", "dim", "gradient"])
def test_ranks_that_are_not_alike(pool: Pool, what: str) -> None:
    for error, after in pool.run("wrong_use.not_alike", 2, what):
        assert_told(error, RuntimeError, OTHER_CALLS)
        assert after == ("", "")


def test_a_group_of_others(pool: Pool) -> None:
    answers = pool.run("wrong_use.a_group_of_others", 4)
    assert answers[:2] == [(("", ""), ("", ""))] * 2
    for answer in answers[2:]:
        for error in answer:
            assert_told(error, ValueError, "process_group: expected a group that this process is")


@pytest.mark.parametrize("built_by", [1, 2, 4])
def test_a_sharded_bank_built_by_others(pool: Pool, built_by: int) -> None:
    """Before there were ranks, by another number of them, or all of it by rank 0."""
    if built_by == 1:
        bank = wrong_use.sharded_bank(None, 0)
    else:
        bank = pool.run("wrong_use.sharded_bank", built_by)[0]
    answers = pool.run("wrong_use.a_bank_from_elsewhere", 4, bank)
    assert [bool(answer) for answer in answers] == [built_by != 4, True, True, True]
    for rank, answer in enumerate(answers):
        words = f"built as shard 0 of {built_by}; now this is rank {rank} of 4"
        for error in answer.values():
            assert_told(error, RuntimeError, words)


def test_a_sharded_bank_where_there_are_no_ranks(pool: Pool) -> None:
    bank = pool.run("wrong_use.sharded_bank", 2)[1]
    error = wrong_use.told(
        lambda: bank.update(torch.randn(1, 8, 2, 2), torch.zeros(1, 2, 2).long())
    )
    assert_told(error, RuntimeError, "built as shard 1 of 2; now this is rank 0 of 1")


@pytest.mark.parametrize("saved", ["another rank", "another number of ranks", "one rank"])
def test_a_checkpoint_of_another_shard(pool: Pool, saved: str) -> None:
    states: dict[str, Any] = {
        "another rank": lambda: pool.run("wrong_use.sharded_bank", 2)[1].state_dict(),
        "another number of ranks": lambda: pool.run("wrong_use.sharded_bank", 4)[0].state_dict(),
        "one rank": lambda: wrong_use.make_bank(
            None, wrong_use.DTYPE, **wrong_use.FOUR
        ).state_dict(),
    }
    of = {"another rank": "1 of 2", "another number of ranks": "0 of 4", "one rank": "0 of 1"}[
        saved
    ]
    answer = pool.run("wrong_use.loads", 2, states[saved]())[0]
    assert_told(
        answer["told"], RuntimeError, f"shard: expected that of rank 0 of 2; got that of rank {of}"
    )
    assert_same_bits(answer["after"], answer["before"])
    assert int(answer["after"]["pixel_count"].sum()) > 0


def test_gather_over_other_ranks_than_the_shards(pool: Pool) -> None:
    for error in pool.run("wrong_use.two_groups", 4):
        assert_told(error, ValueError, "process_group: expected that of the sharded bank")


class Whole(nn.Module):
    """A module that holds a loss, as nn.DataParallel might wrap it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.loss(*inputs)


def replica_of(module: nn.Module) -> nn.Module:
    """A replica of a module and of its submodules, as `torch.nn.parallel.replicate` makes it."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module.named_parameters(recurse=False):
        setattr(replica, name, parameter.view_as(parameter))  # no Parameter, but a copy of it
    for name, child in module.named_children():
        setattr(replica, name, replica_of(child))
    return replica


@pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("training", [True, False])
def test_replicas_of_a_bank(kind: type[nn.Module], training: bool) -> None:
    """nn.DataParallel, which needs several GPUs: its replicas would share the bank of the first."""
    bank = make_bank(None, torch.float32, pixel_slots=9, region_slots=9)
    loss = kind(bank=bank, projection=make_head(torch.float32)).train(training)
    emb, labels, _ = Batch(0, torch.float32).share([6], 0)
    replica = replica_of(Whole(loss))
    with pytest.raises(RuntimeError, match=r"replica of nn\.DataParallel \(wrap the network only"):
        replica(emb, labels)
    assert int(bank.pixel_count.sum()) == 0
    loss(emb, labels)  # the original still works
    assert (int(bank.pixel_count.sum()) > 0) is training


def test_replicas_without_a_bank() -> None:
    """Each replica has the loss of its part of the batch."""
    loss = PixelContrastLoss(projection=make_head(torch.float64))
    emb, labels, _ = Batch(0, torch.float64).share([6], 0)
    values = []
    for module in (replica_of(Whole(loss)), loss):
        torch.manual_seed(0)
        value = module(emb[:2], labels[:2] % CLASSES)
        values.append([value.detach(), *torch.autograd.grad(value, list(loss.parameters()))])
    assert float(values[1][0]) > 0
    assert_same_bits(values[0], values[1])
