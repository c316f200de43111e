"""Process groups that are not the world: each is a training of its own."""

import pytest
import torch
import training
from pool import Pool
from test_data_parallel import assert_alike, assert_same_bits

GROUPS = {"side by side": [[0, 1], [2, 3]], "interleaved": [[0, 2], [1, 3]]}


def entries_of(banks: list[dict[str, torch.Tensor]], queue: str) -> torch.Tensor:
    """The written entries of all shards of a bank, in an order that is not that of their slots."""
    written = []
    for bank in banks:
        slots = torch.arange(bank[queue].shape[1])
        written.append(bank[queue][slots < bank[f"{queue[:-1]}_count"][:, None]])
    entries = torch.cat(written)
    return entries[entries[:, 0].argsort()]


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("names", GROUPS)
def test_each_group_is_one_process(pool: Pool, names: str, sharded: bool) -> None:
    groups = GROUPS[names]
    answers = pool.run("training.train_in_groups", 4, groups, [4, 2], sharded=sharded)
    found = []
    for number, ranks in enumerate(groups):
        expected = training.train_every_pixel(None, 0, [6], "alone", first_batch=10 * number)
        of_group = [answers[rank] for rank in ranks]
        assert_alike(of_group, [expected])
        banks = [answer["banks"][0] for answer in of_group]
        if not sharded:
            assert_same_bits(banks[1], banks[0])
        for queue in ("pixels", "regions"):
            entries = entries_of(banks if sharded else banks[:1], queue)
            torch.testing.assert_close(
                entries, entries_of(expected["banks"], queue), rtol=0, atol=1e-12
            )
            found.append(entries)
    assert found[0].shape != found[2].shape or not torch.allclose(found[0], found[2])


def test_a_group_without_a_backend_for_the_host(pool: Pool) -> None:
    """As a job of NCCL alone has them: hosts talk beside it, whatever groups each is in."""
    expected = training.train_every_pixel(None, 0, [6], "alone")
    answers = pool.run("training.train_beside_gloo", 4, [4, 2])[:2]
    assert_alike(answers, [expected])
    for answer in answers:
        assert answer["is another"]
        assert answer["limits"][0] == answer["limits"][1]
