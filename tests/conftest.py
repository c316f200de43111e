import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from nested import select_part

# Examples are a function of the test alone: a red run can be repeated.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.register_profile(
    "campaign",  # by hand, see test_bank_states.py
    deadline=None,
    derandomize=True,
    max_examples=1500,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("default")

# The problems are small: a second thread would be waited for more than it helps. Workers run side
# by side, and processes that tests start inherit the variable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
MOST_WORKERS = 8  # each has PyTorch, Triton and scikit-learn in memory


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each processor, but none for named files: starting one takes seconds.

    None either where a test has started this process.
    """
    is_nested = "PYTEST_CURRENT_TEST" in os.environ
    if is_nested or all(".py" in argument for argument in config.args):
        return 0
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    return min(os.cpu_count() or 1, MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    select_part(config, items)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nan_in_empty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was allocated and never written holds NaN, so that a read of it is seen."""
    if request.node.get_closest_marker("plain_empty"):
        return

    def fill(tensor: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # which a tensor that is made to require one does not bear else
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    empty, new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: fill(empty(*args, **kwargs)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda *args, **kwargs: fill(new_empty(*args, **kwargs))
    )


@pytest.fixture
def sorted_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """No problem is small enough for a single tile."""
    from pixcontrast._info_nce.tiled import one_tile

    monkeypatch.setattr(one_tile, "MAX_LENGTH", 0)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch, sorted_tiles: None) -> None:
    """Tiles so small that little problems have many, of uneven sizes."""
    from pixcontrast._info_nce.tiled import mined, row_blocks, similarities, tiles

    for module in (tiles, row_blocks):
        monkeypatch.setattr(module, "TILE_ROWS", 3)
    monkeypatch.setattr(similarities, "TILE_COLUMNS", 7)
    monkeypatch.setattr(tiles, "POSITIVE_ROWS", 2)
    monkeypatch.setattr(tiles, "MIN_ROWS", 4)
    monkeypatch.setattr(row_blocks, "BLOCK_SIZE", 640)
    monkeypatch.setattr(row_blocks, "MASKED_SIZE", 64)
    monkeypatch.setattr(mined, "GROUP", 2)
    monkeypatch.setattr(mined, "MAX_TIES", 1)
    monkeypatch.setattr(tiles, "MAX_ATTENDED", 11)
    monkeypatch.setattr(similarities, "MIN_ATTENDED_PER_THREAD", 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


@pytest.fixture
def without_attention(monkeypatch: pytest.MonkeyPatch, sorted_tiles: None) -> None:
    """A PyTorch that lacks its attention for processors."""
    from pixcontrast._info_nce.tiled import similarities

    monkeypatch.setattr(similarities, "_ATTENTION", "not_there")


@pytest.fixture
def unseen_values(monkeypatch: pytest.MonkeyPatch, sorted_tiles: None) -> None:
    """Take the path of a device whose values the host must not wait for."""
    from pixcontrast._info_nce.tiled import class_order, mined, similarities

    monkeypatch.setattr(class_order, "reads_are_free", lambda device: False)
    monkeypatch.setattr(similarities, "reads_are_free", lambda device: False)
    monkeypatch.setattr(mined, "reads_are_free", lambda device: False)


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A folder of CamVid's layout, images PNG and JPEG, with void and an absent class."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("", "annot"):
            (tmp_path / f"{split}{kind}").mkdir()
        for number in range(count):
            labels = np.repeat(np.repeat(random.integers(0, 10, (3, 4)), 16, 0), 16, 1)
            labels[:2] = 11
            image = np.stack([labels * 20, labels * 5, 255 - labels * 9], 2).astype(np.uint8)
            suffix = "jpg" if number % 2 else "png"
            Image.fromarray(image).save(tmp_path / split / f"{number:02}.{suffix}")
            Image.fromarray(labels.astype(np.uint8)).save(
                tmp_path / f"{split}annot" / f"{number:02}.png"
            )
    return tmp_path
