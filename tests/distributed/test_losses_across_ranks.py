"""W ranks are one rank with the whole batch: loss, gradient and bank."""

import itertools
from typing import Any

import jobs
import pytest
import torch
from pool import Pool

from pixcontrast import HardNegativeSampler

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
    for denominator, weighted, reduction in itertools.product(
        ("negatives", "all"), (False, True), ("mean", "sum")
    ):
        options = {"denominator": denominator, "weighted": weighted, "reduction": reduction}
        expected = over_ranks([jobs.loss_step(None, 0, kind, [6], dtype, **options)])
        answers = pool.run("jobs.loss_step", size, kind, SIZES[size], dtype, **options)
        assert_alike(over_ranks(answers), expected, dtype)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("kind", ["pixels", "regions"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_bank_of_all_ranks(pool: Pool, size: int, kind: str, sharded: bool) -> None:
    slots = 120
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


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_own_image_and_a_bank_of_all_ranks(pool: Pool, size: int, sharded: bool) -> None:
    """Ranks have different numbers of images, and images different numbers of anchors."""
    options = {"contrast_with": ("image", "pixels", "regions"), "steps": 3}
    bank = {"pixel_slots": 120, "region_slots": 120}
    alone = jobs.loss_step(None, 0, "pixels", [6], torch.float64, bank=bank, **options)
    if sharded:
        bank = {name: slots // size for name, slots in bank.items()} | {"sharded": True}
    arguments = (size, "pixels", SIZES[size], torch.float64)
    answers = pool.run("jobs.loss_step", *arguments, bank=bank, **options)
    assert_alike(over_ranks(answers), over_ranks([alone]), torch.float64)


# Strategies that leave nothing to chance, or take all of what chance would draw from.
MININGS = {
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=9, num_positives=4),
    "hardest negatives": HardNegativeSampler(
        strategy="hardest", num_negatives=7, num_positives=None
    ),
    "semi-hard": HardNegativeSampler(ratio=0.2, num_negatives=10**6, num_positives=10**6),
    "random": HardNegativeSampler(strategy="random", num_negatives=10**6, num_positives=10**6),
}


@pytest.mark.parametrize("mining", list(MININGS))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_mining_over_shards(pool: Pool, size: int, mining: str) -> None:
    for denominator, dtype in itertools.product(
        ("negatives", "all"), (torch.float64, torch.float32)
    ):
        options = {"denominator": denominator, "negative_sampler": MININGS[mining], "steps": 2}
        # Without regions: that of a single pixel ties with the pixel, but for a rounding.
        bank = {"pixel_slots": 120, "region_slots": 0}
        expected = over_ranks(
            [jobs.loss_step(None, 0, "pixels", [6], dtype, bank=bank, backend="dense", **options)]
        )
        shards = {name: slots // size for name, slots in bank.items()} | {"sharded": True}
        answers = pool.run(
            "jobs.loss_step", size, "pixels", SIZES[size], dtype, bank=shards, **options
        )
        assert_alike(over_ranks(answers), expected, dtype)


def test_the_textbook_formula_over_shards(pool: Pool) -> None:
    options = {"bank": {"pixel_slots": 5, "region_slots": 3, "sharded": True}, "steps": 3}
    arguments = (4, "pixels", SIZES[4], torch.float64)
    tiled = pool.run("jobs.loss_step", *arguments, backend="tiled", **options)
    dense = pool.run("jobs.loss_step", *arguments, backend="dense", **options)
    assert_alike(over_ranks(tiled), over_ranks(dense), torch.float64)
    assert [answer["entries"] for answer in tiled] == [answer["entries"] for answer in dense]


@pytest.mark.parametrize("strategy", ["semi-hard", "random"])
def test_chance_draws_as_many_over_shards(pool: Pool, strategy: str) -> None:
    """Of every anchor's candidates on all ranks, as many as asked for, or all there are."""
    answers = pool.run("jobs.count_selected", 3, strategy, SIZES[3])
    for available, selected, asked, seed in answers:
        assert torch.equal(selected, available.clamp(max=asked))
        assert int(available.max()) > asked
        # Keys of one anchor differ over all ranks only where they are made of one seed.
        assert seed == answers[0][3]


def test_a_loss_over_shards_without_its_batch(pool: Pool) -> None:
    """The authors' memory variant, every rank for its own anchors, in the sampler's order."""
    options = {"contrast_with": ("pixels", "regions"), "gather": False, "steps": 3}
    bank = {"pixel_slots": 120, "region_slots": 24}
    for reduction in ("none", "mean"):
        kwargs = {**options, "reduction": reduction}
        expected = jobs.loss_step(None, 0, "pixels", [6], torch.float64, bank=bank, **kwargs)
        shards = {"pixel_slots": 60, "region_slots": 12, "sharded": True}
        answers = pool.run(
            "jobs.loss_step", 2, "pixels", [6, 0], torch.float64, bank=shards, **kwargs
        )
        for one, other in zip(answers[0]["losses"], expected["losses"], strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one.sum(), other.sum(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            answers[0]["gradient"], expected["gradient"], rtol=1e-10, atol=1e-12
        )
        assert all(float(loss.sum()) == 0 for loss in answers[1]["losses"])


def test_any_callable_is_a_sampler_on_every_rank(pool: Pool) -> None:
    losses = torch.stack(pool.run("jobs.own_sampler", 2))
    (expected,) = jobs.loss_step(None, 0, "pixels", [6], torch.float64)["losses"]
    torch.testing.assert_close(losses.mean(), expected, rtol=1e-10, atol=0.0)


SHAPES = {"points": (), "1d": (5,), "2d": (3, 4), "3d": (2, 2, 3)}


@pytest.mark.parametrize(
    "bank_dtype", [None, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_every_shape_and_dtype(
    pool: Pool, dtype: torch.dtype, bank_dtype: torch.dtype | None
) -> None:
    for name, spatial in SHAPES.items():
        sizes = [4, 0, 2] if spatial else [30, 0, 20]
        arguments = (spatial, dtype, bank_dtype)
        alone = over_ranks([jobs.shaped_step(None, 0, [sum(sizes)], *arguments)])
        for sharded in [False] if bank_dtype is None else [False, True]:
            answers = pool.run("jobs.shaped_step", 3, sizes, *arguments, sharded=sharded)
            losses, gradient = over_ranks(answers)
            # Losses and sums are float32 at the least. A gradient is rounded to its dtype, by half
            # an eps each time: on one rank twice, as that of anchors and of the map; on W ranks by
            # each rank that sends a part, once more as their sum, and where that meets its own.
            roundings = 2 + (len(sizes) + 4)
            exact = bank_dtype is None and dtype == torch.float64
            torch.testing.assert_close(losses, alone[0], rtol=1e-10 if exact else 1e-5, atol=0.0)
            error = float((gradient - alone[1]).abs().max() / alone[1].abs().max())
            assert error <= max(1e-5, roundings * torch.finfo(dtype).eps / 2), name


@pytest.mark.parametrize("mined", [False, True])
def test_opcheck_of_shards(pool: Pool, mined: bool) -> None:
    assert pool.run("jobs.opcheck_of_shards", 2, mined) == [None, None]


@pytest.mark.parametrize("strategy", ["semi-hard", "random"])
def test_the_textbook_formula_draws_the_same_over_shards(pool: Pool, strategy: str) -> None:
    sampler = HardNegativeSampler(strategy, num_negatives=5, num_positives=3)
    bank = {"pixel_slots": 8, "region_slots": 4, "sharded": True}
    options = {"bank": bank, "negative_sampler": sampler, "steps": 3, "seed": 7}
    tiled, dense = (
        pool.run("jobs.loss_step", 2, "pixels", [4, 2], torch.float64, backend=backend, **options)
        for backend in ("tiled", "dense")
    )
    assert_alike(over_ranks(tiled), over_ranks(dense), torch.float64)
