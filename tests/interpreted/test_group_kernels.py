"""The kernels around the sorts of the sampler and the bank, beside the operations they replace."""

import pytest
import torch

from pixcontrast import HardAnchorSampler, MemoryBank, RandomAnchorSampler, _triton
from pixcontrast._pixels import group_kernels

SAMPLERS = [
    HardAnchorSampler(max_anchors=24, max_views=5, hard_fraction=0.3, min_pixels=3),
    HardAnchorSampler(max_anchors=7, hard_fraction=1 / 3),
    HardAnchorSampler(max_anchors=60, max_per_class=5),
    HardAnchorSampler(max_anchors=500, max_views=500),
    RandomAnchorSampler(max_anchors=40, max_views=9, max_per_class=4),
]


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch):
    monkeypatch.setattr(group_kernels, "BLOCK", 32)
    monkeypatch.setattr(group_kernels, "GROUPS", 4)
    monkeypatch.setattr(group_kernels, "VIEWS", 4)


def by_both(monkeypatch, run):
    """The results of `run` by operations and by kernels, with equal random numbers."""
    results = []
    for takes_kernels in (False, True):
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_, use=takes_kernels: use)
        results.append(run(torch.Generator().manual_seed(7)))
    return results


def scene(dtype=torch.int64, images=3, pixels=70, classes=5):
    labels, preds = torch.randint(0, classes, (2, images, pixels))
    labels[0, :20], labels[1] = 255, 2
    labels[2, 4:8] = 1 if dtype in (torch.uint8, torch.bool) else -3
    return labels.to(dtype), preds.to(dtype)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
@pytest.mark.parametrize("with_preds", [True, False])
def test_the_same_anchors(sampler, with_preds, monkeypatch):
    for dtype in (torch.int64, torch.uint8, torch.bool):
        labels, preds = scene(dtype)
        every_second = torch.stack([labels, labels.flip(1)], dim=2)[..., 0]
        for strided in (labels, labels.T.contiguous().T, every_second):
            given = strided, preds if with_preds else None
            plain, kernels = by_both(
                monkeypatch, lambda generator, given=given: sampler(*given, generator=generator)
            )
            assert torch.equal(plain.indices, kernels.indices)
            assert torch.equal(plain.labels, kernels.labels)


@pytest.mark.parametrize("ignore_index", [255, -100, 0, 2**40])
def test_ignored_and_large_labels(ignore_index, monkeypatch):
    labels, preds = scene()
    labels[2, 30:] = ignore_index
    labels[2, 20:25] = 2**24 if ignore_index == 255 else 2**24 - 1
    # On a GPU labels that are too large are ignored, because nobody reads them.
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    sampler = SAMPLERS[0]
    plain, kernels = by_both(
        monkeypatch,
        lambda generator: sampler(labels, preds, ignore_index=ignore_index, generator=generator),
    )
    assert torch.equal(plain.indices, kernels.indices)
    assert torch.equal(plain.labels, kernels.labels)


@pytest.mark.parametrize("pixels", [1, 2, 31, 33])
def test_few_pixels(pixels, monkeypatch):
    labels, preds = torch.randint(-1, 3, (2, 2, pixels))
    for sampler in SAMPLERS:
        given = labels, preds
        plain, kernels = by_both(
            monkeypatch, lambda generator, s=sampler, given=given: s(*given, generator=generator)
        )
        assert torch.equal(plain.indices, kernels.indices)
        assert torch.equal(plain.labels, kernels.labels)


def test_the_chance_is_rounded_as_by_operations(monkeypatch):
    """A fraction that float32 cannot hold, and random numbers that make the sum an integer."""
    labels = torch.zeros(10, 20, dtype=torch.int64)
    preds = (torch.arange(20) < 10).long().expand(10, 20)
    chance = torch.rand(100, dtype=torch.float64)
    chance[::2] = 1 - 2.0**-53
    chance[1::4] = 0.0
    monkeypatch.setattr(torch, "rand", lambda *_, **__: chance)
    for fraction in (0.3, 0.7, 1 / 3, 0.1):
        sampler = HardAnchorSampler(max_anchors=100, max_views=10, hard_fraction=fraction)
        plain, kernels = by_both(
            monkeypatch, lambda generator, s=sampler: s(labels, preds, generator=generator)
        )
        assert torch.equal(plain.indices, kernels.indices)


@pytest.mark.parametrize("options", [{}, {"region_slots": 0}, {"pixels_per_region": 6}], ids=str)
def test_the_same_pixels_are_drawn_for_a_bank(options, monkeypatch):
    bank = MemoryBank(5, 4, pixel_slots=9, pixels_per_image=6, **options)
    emb = torch.randn(3, 4, 70)
    emb[1, :, 5:40] = float("nan")
    labels, _ = scene()
    labels[(labels == 255) | (labels < 0)] = -1
    plain, kernels = by_both(
        monkeypatch,
        lambda generator: bank._entry_maker.draw_pixels(emb, labels, None, generator),
    )
    assert torch.equal(plain.valid, kernels.valid)
    assert torch.equal(plain.indices, kernels.indices)
    assert plain.valid.any()
    assert not plain.valid.all()
