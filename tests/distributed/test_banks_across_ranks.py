"""Every rank's bank holds what all ranks have seen, in rank order, to the bit."""

from collections import deque

import jobs
import pytest
import torch
from pool import Pool

from pixcontrast import MemoryBank
from pixcontrast._tensors import unit_length

STEPS = 50


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("region", [None, 3])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_banks_are_the_same_to_the_bit(pool: Pool, size: int, region: int | None) -> None:
    answers = pool.run("jobs.fill_banks", size, STEPS, size, size, pixels_per_region=region)
    for states in answers[1:]:
        assert all(same(one, other) for one, other in zip(states, answers[0], strict=True))
    last = answers[0][-1]
    assert int(last["pixel_count"].min()) == 13
    assert int(last["region_count"].min()) == 5


@pytest.mark.parametrize("size", [2, 4])
def test_regions_are_those_of_one_rank_with_the_whole_batch(pool: Pool, size: int) -> None:
    """In rank order; pixels of an image stand in an order of chance."""
    answers = pool.run("jobs.fill_banks", size, STEPS, size, size)
    alone = MemoryBank(jobs.CLASSES, 8, pixel_slots=13, region_slots=5, pixels_per_image=12)
    for step in range(STEPS):
        emb, labels = (
            torch.cat(parts) for parts in zip(*jobs.shares_of_step(step, size, size), strict=True)
        )
        alone.update(emb, labels)
    last, expected = answers[0][-1], alone.state_dict()
    for name in ("pixel_count", "pixel_next", "region_count", "region_next"):
        assert torch.equal(last[name], expected[name]), name
    torch.testing.assert_close(last["regions"], expected["regions"])


@pytest.mark.parametrize("region", [None, 99])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_shards_hold_every_entry_where_it_lives(pool: Pool, size: int, region: int | None) -> None:
    """Against deques: entry number g of a class on rank g mod W, the newest W·slots of them."""
    answers = pool.run(
        "jobs.fill_banks", size, STEPS, size, size, sharded=True, pixels_per_region=region
    )
    newest = [deque(maxlen=5 * size) for _ in range(jobs.CLASSES)]
    seen = [0] * jobs.CLASSES
    for step in range(STEPS):
        for emb, labels in jobs.shares_of_step(step, size, size):
            for image, image_labels in zip(emb, labels, strict=True):
                pixels = unit_length(image.flatten(1).T)
                for c in range(jobs.CLASSES):
                    members = pixels[image_labels.flatten() == c]
                    if len(members):
                        region = unit_length(members.sum(dim=0)[None])[0]
                        newest[c].append((seen[c], region))
                        seen[c] += 1
        if step % 10 != 9:
            continue
        for rank, states in enumerate(answers):
            state = states[step // 10]
            assert state["shard"].tolist() == [rank, size]
            for c in range(jobs.CLASSES):
                mine = [(g, vector) for g, vector in newest[c] if g % size == rank]
                assert int(state["region_count"][c]) == len(mine)
                for g, vector in mine:
                    slot = g // size % 5
                    torch.testing.assert_close(state["regions"][c, slot], vector)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_maps_of_another_size_on_each_rank(pool: Pool, sharded: bool) -> None:
    """Images give all of their pixels, and those of the largest maps have the most."""
    states = pool.run("jobs.fill_from_maps_of_any_size", 3, sharded=sharded)
    maps = [jobs.maps_of_any_size(rank) for rank in range(3)]
    pixels = torch.cat([unit_length(emb.transpose(0, 1).flatten(1).T) for emb, _ in maps])
    labels = torch.cat([labels.flatten() for _, labels in maps])
    for c in range(jobs.CLASSES):
        expected = sorted(pixels[labels == c].tolist())
        counts = [int(state["pixel_count"][c]) for state in states]
        held = [state["pixels"][c, :count] for state, count in zip(states, counts, strict=True)]
        for found in [torch.cat(held)] if sharded else held:
            torch.testing.assert_close(sorted(found.tolist()), expected)


@pytest.mark.parametrize("left_out", ["pixel_slots", "region_slots"])
def test_one_queue_alone_and_a_rank_without_images(pool: Pool, left_out: str) -> None:
    states = pool.run("jobs.fill_from_maps_of_any_size", 3, **{left_out: 0})
    assert all(same(state, states[0]) for state in states)
    both = pool.run("jobs.fill_from_maps_of_any_size", 3)
    kept = "region" if left_out == "pixel_slots" else "pixel"
    for name in (f"{kept}s", f"{kept}_count", f"{kept}_next"):
        assert states[0][name].shape == both[0][name].shape
    assert torch.equal(states[0][f"{kept}_count"], both[0][f"{kept}_count"])
    assert int(states[0][f"{kept}_count"].sum()) > 0


def test_one_pixel_an_image_and_a_rank_without_images(pool: Pool) -> None:
    states = pool.run("jobs.fill_from_maps_of_any_size", 3, pixels_per_image=1)
    assert all(same(state, states[0]) for state in states)
    there = [jobs.maps_of_any_size(rank)[1].unique().tolist() for rank in range(3)]
    expected = [sum(c in classes for classes in there) for c in range(jobs.CLASSES)]
    assert states[0]["pixel_count"].tolist() == expected


def test_a_loss_that_does_not_look_at_its_sharded_bank_asks_no_rank(pool: Pool) -> None:
    (beside, alone), _ = pool.run("jobs.loss_that_asks_no_rank", 2)
    assert beside == alone > 0


@pytest.mark.parametrize("sharded", [False, True])
def test_entries_of_other_ranks_are_negatives(pool: Pool, sharded: bool) -> None:
    """A batch of one class gives no warning where the bank has the classes of other ranks."""
    assert pool.run("jobs.warnings_of_one_class", 2, sharded) == [[], []]


def test_another_shard_is_refused(pool: Pool) -> None:
    (_, state) = (answers[-1] for answers in pool.run("jobs.fill_banks", 2, 10, 0, 2, sharded=True))
    alone = MemoryBank(jobs.CLASSES, 8, pixel_slots=13, region_slots=5, sharded=True)
    before = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    with pytest.raises(RuntimeError, match="rank 0 of 1; got that of rank 1 of 2"):
        alone.load_state_dict(state)
    assert same(alone.state_dict(), before)
