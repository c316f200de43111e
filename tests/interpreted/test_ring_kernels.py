"""The kernels of the rings, beside the operations that they replace."""

import pytest
import torch

from pixcontrast import _triton
from pixcontrast._bank import ring_kernels
from pixcontrast._bank.ring import Rings, Shard, append_all


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch):
    monkeypatch.setattr(ring_kernels, "ENTRIES", 4)
    monkeypatch.setattr(ring_kernels, "BLOCK", 8)
    monkeypatch.setattr(ring_kernels, "BLOCK_D", 8)


@pytest.fixture(params=["in order", "reversed"])
def _programs(request, monkeypatch):
    """The order of the programs of a launch, which run at the same time on a GPU."""
    from triton.runtime.interpreter import interpreter_builder as builder

    set_index = builder.set_grid_idx

    def set_reversed(*index):
        set_index(*(size - 1 - each for size, each in zip(builder.grid_dim, index, strict=True)))

    if request.param == "reversed":
        monkeypatch.setattr(builder, "set_grid_idx", set_reversed)


def empty_rings(slots, dim, dtype):
    counters = torch.zeros(2, 3, dtype=torch.int64)
    return Rings(torch.zeros(3, slots, dim, dtype=dtype), *counters)


def append_by(form, queues, news, shard, monkeypatch):
    monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: form == "kernels")
    append_all([(rings, *new) for rings, new in zip(queues, news, strict=True)], shard)


@pytest.mark.usefixtures("_programs")
@pytest.mark.parametrize("shard", [Shard(0, 1), Shard(0, 3), Shard(2, 3)], ids=str)
@pytest.mark.parametrize(
    ("slots", "most", "dim", "dtype"),
    [
        ((5, 3), (4, 1), 3, torch.float32),
        ((1, 9), (2, 6), 20, torch.bfloat16),
        ((4,), (3,), 4, torch.float16),
        ((40,), (1,), 8, torch.float64),
    ],
)
def test_rings_are_the_same(slots, most, dim, dtype, shard, monkeypatch):
    plain, kernels = ([empty_rings(size, dim, dtype) for size in slots] for _ in range(2))
    for step in range(5):
        images = 1 + step % 3
        news = []
        for each in most:
            # Already rounded: the interpreter rounds to bfloat16 in another way than PyTorch.
            vectors = torch.randn(images, 3, 2 * each, dim).to(dtype).float()[:, :, :each]
            valid = torch.rand(images, 3, 2 * each)[:, :, :each] < (0.8, 0.0, 0.3)[step % 3]
            vectors = torch.where(valid[..., None], vectors, float("nan"))
            news.append((vectors, valid))
        append_by("operations", plain, news, shard, monkeypatch)
        append_by("kernels", kernels, news, shard, monkeypatch)
        for one, other in zip(plain, kernels, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
            assert one.vectors.isfinite().all()
    assert all((rings.counts > 0).any() for rings in plain)


def test_labels_of_slots_are_the_same(monkeypatch):
    rings = empty_rings(7, 2, torch.float32)
    rings.counts.copy_(torch.tensor([0, 7, 3]))
    for ignored in (-1, 255, 2**40):
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: False)
        expected = rings.labels(ignored)
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: True)
        assert torch.equal(rings.labels(ignored), expected)
    none = empty_rings(0, 2, torch.float32)
    assert none.labels(-1).shape == (0,)
