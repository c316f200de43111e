"""`projection=` and `"image"` on W ranks: losses, gradients and bank are those of one rank."""

from typing import Any

import jobs
import pytest
import torch
from pool import Pool
from test_groups import entries_of
from test_losses_across_ranks import over_ranks

DTYPE = torch.float64
SIZES = {"2 ranks": [4, 2], "one without an image": [3, 0, 3], "one without an anchor": [3, 1, 2]}
SLOTS = 120
SOURCES = {
    "batch": (None, {}),
    "drawn regions": (None, {"pixels_per_region": 12}),  # all pixels of a class
    "image": (("image",), None),
    "image and bank": (("image", "pixels", "regions"), {}),
    "image and drawn regions": (("image", "regions"), {"pixels_per_region": 12}),
}


def bank_options(
    bank: dict[str, Any] | None, *, size: int = 1, sharded: bool = False
) -> dict[str, Any] | None:
    """Options of a bank of `SLOTS` slots in all."""
    if bank is None:
        return None
    slots = SLOTS // size if sharded else SLOTS
    return {"pixel_slots": slots, "region_slots": slots, "sharded": sharded, **bank}


def combined(answers: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The mean over ranks of losses and head gradients, and the gradient of all features."""
    heads = [answer["head"] for answer in answers]
    head = [torch.stack(parts).mean(dim=0) for parts in zip(*heads, strict=True)]
    return [*over_ranks(answers), *head]


def assert_alike(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert float(other.abs().max()) > 0
        assert float((one - other).abs().max() / other.abs().max()) <= 1e-10


def assert_same_entries(answers: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Every rank, or all shards together, hold the expected entries, in any order."""
    if not expected["bank"]:
        return
    sharded = "shard" in answers[0]["bank"]
    banks = [answer["bank"] for answer in answers]
    for queue in ("pixels", "regions"):
        entries = entries_of([expected["bank"]], queue)
        assert len(entries) > 0
        for held in [banks] if sharded else [[bank] for bank in banks]:
            torch.testing.assert_close(entries_of(held, queue), entries, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_gathered(pool: Pool, sizes: list[int], source: str, sharded: bool) -> None:
    contrast_with, bank = SOURCES[source]
    if bank is None and sharded:
        pytest.skip("no bank to shard")
    options = {"project": True, "steps": 2, "weighted": True, "contrast_with": contrast_with}
    arguments = ("pixels", [6], DTYPE)
    expected = jobs.loss_step(None, 0, *arguments, bank=bank_options(bank), **options)
    spread = bank_options(bank, size=len(sizes), sharded=sharded)
    answers = pool.run("jobs.loss_step", len(sizes), "pixels", sizes, DTYPE, bank=spread, **options)
    assert_alike(combined(answers), combined([expected]))
    assert_same_entries(answers, expected)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("regions", [None, 12])
def test_regions_of_a_projected_batch(pool: Pool, regions: int | None, sharded: bool) -> None:
    """`RegionContrastLoss`: the regions of the other ranks' batches, of all or of drawn pixels."""
    bank = {"pixels_per_region": regions}
    options = {"project": True, "steps": 2}
    arguments = ("regions", [6], DTYPE)
    expected = jobs.loss_step(None, 0, *arguments, bank=bank_options(bank), **options)
    spread = bank_options(bank, size=3, sharded=sharded)
    answers = pool.run("jobs.loss_step", 3, "regions", [3, 0, 3], DTYPE, bank=spread, **options)
    assert_alike(combined(answers), combined([expected]))
    assert_same_entries(answers, expected)


@pytest.mark.parametrize("project", [False, True], ids=["embeddings", "features"])
@pytest.mark.parametrize("source", ["image", "image and bank"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_image_without_gather(pool: Pool, sizes: list[int], source: str, project: bool) -> None:
    """Contrast within an image needs no other rank: the sum over ranks is that of one rank."""
    contrast_with, bank = SOURCES[source]
    options = {
        "project": project,
        "steps": 2,
        "contrast_with": contrast_with,
        "gather": False,
        "reduction": "sum",
    }
    expected = jobs.loss_step(None, 0, "pixels", [6], DTYPE, bank=bank_options(bank), **options)
    for sharded in [False] if bank is None else [False, True]:
        spread = bank_options(bank, size=len(sizes), sharded=sharded)
        answers = pool.run(
            "jobs.loss_step", len(sizes), "pixels", sizes, DTYPE, bank=spread, **options
        )
        mean = combined(answers)
        assert_alike([len(sizes) * part for part in mean], combined([expected]))
        assert_same_entries(answers, expected)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", ["pixels", "regions"])
def test_drawn_regions_are_those_of_each_rank(pool: Pool, kind: str, sharded: bool) -> None:
    """With fewer pixels than a class has, the bank holds what each rank drew, in rank order."""
    sizes = [3, 0, 3]
    expected = jobs.draw_regions(None, 0, kind, sizes, 24)
    slots = 24 // len(sizes) if sharded else 24
    answers = pool.run("jobs.draw_regions", 3, kind, sizes, slots, sharded=sharded)
    assert int(expected["region_count"].max()) == int(expected["pixel_count"].max()) == 24
    for rank, bank in enumerate(answers):
        for queue in ("pixels", "regions"):
            part = expected[queue][:, rank::3] if sharded else expected[queue]
            torch.testing.assert_close(bank[queue], part, rtol=0, atol=1e-12)
