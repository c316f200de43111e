"""The kernels mine over a bank that is spread over ranks as the tiled form does."""

import sys
from pathlib import Path

import pytest
import torch

from pixcontrast import HardNegativeSampler

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
import pool

SAMPLERS = {
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=9, num_positives=4),
    "semi-hard": HardNegativeSampler(ratio=0.2, num_negatives=7, num_positives=3),
    "random": HardNegativeSampler(strategy="random", num_negatives=6, num_positives=None),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two ranks, which interpret kernels as this process does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "TIME_LIMIT", 240.0)
        ranks = pool.Pool(2, tmp_path_factory.mktemp("ranks"))
        yield ranks
        ranks.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "strategy",
    ["semi-hard", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hardest", "random"))],
)
def test_two_ranks_select_what_the_tiled_form_selects(ranks, strategy):
    """With more entries in a shard than are sampled, a batch beside it, and unequal ranks."""
    options = {
        "bank": {"pixel_slots": 40, "region_slots": 0, "sharded": True},
        "denominator": "all" if strategy == "hardest" else "negatives",
        "negative_sampler": SAMPLERS[strategy],
        "contrast_with": ("batch", "pixels"),
        "steps": 2,
    }
    arguments = "jobs.loss_step", 2, "pixels", [4, 2], torch.float32
    found = ranks.run(*arguments, backend="triton", **options)
    expected = ranks.run(*arguments, backend="tiled", **options)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual["losses"], wanted["losses"], rtol=1e-5, atol=0)
        error = (actual["gradient"] - wanted["gradient"]).abs().max()
        assert error <= 1e-5 * wanted["gradient"].abs().max()
