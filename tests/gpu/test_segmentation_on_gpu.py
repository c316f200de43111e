"""The training runs of the GPU table of the ablation, at a tiny size."""

from dataclasses import replace

import pytest
import torch
from on_gpu import DEVICE, needs_gpu, size

# A machine with a GPU need not have these; no other GPU test needs them.
for package in ("PIL", "sklearn", "tqdm"):
    pytest.importorskip(package)

from benchmarks._training.experiment import load_data, run_experiment  # noqa: E402
from benchmarks._training.protocol import TABLES  # noqa: E402

pytestmark = [*needs_gpu, pytest.mark.ungated("training")]

TABLE = TABLES["gpu"]
STEPS = size(10, 2)
TINY = replace(TABLE, base=replace(TABLE.base, size=(48, 64), steps=STEPS, batch_size=2))


@pytest.mark.parametrize("row", TINY.rows)
def test_a_run_of_the_table_for_a_gpu(row, camvid):
    key = TINY.key(row, seed=100)
    data = load_data(TINY.data, TINY.split, TINY.base.size, camvid).to(DEVICE)
    run = run_experiment(key, data, {})
    assert 0 <= run["measured"]["mean_iou"] <= 1
    assert len(run["ratios"]) == (STEPS if key.recipe.has_contrast else 0)
    assert all(0 < ratio < 1e6 for ratio in run["ratios"])
    # The fingerprint does not depend on the device.
    assert run["heldout_fingerprint"] == data.to(torch.device("cpu")).heldout.fingerprint()
