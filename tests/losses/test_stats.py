"""What a loss says of its last call, beside the same counted one by one."""

import copy

import pytest
import torch
from torch.nn import functional as F

from pixcontrast import (
    AnchorSample,
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
    RegionContrastLoss,
)

IGNORE = 255


def scene(seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(3, 8, 6, 5, generator=generator)
    labels = torch.randint(classes, (3, 6, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    preds = torch.randint(classes, (3, 6, 5), generator=generator)
    return emb, labels, preds


def sampled(emb, labels, sample):
    """The sampled pixels' unit vectors, their labels and images."""
    there = sample.labels != IGNORE
    places = sample.indices[there]
    rows = F.normalize(emb.movedim(1, -1).flatten(0, -2), dim=1)[places]
    return rows, sample.labels[there], places // labels[0].numel(), places


def test_groups_and_hard_share():
    emb, labels, preds = scene()
    labels[2][labels[2] == 1] = 0
    labels[2, 0, 0] = 1  # a group of one pixel
    loss = PixelContrastLoss(
        anchor_sampler=HardAnchorSampler(max_anchors=40, max_views=4, min_pixels=2)
    )
    assert loss.stats is None
    _, sample = loss(emb, labels, preds, return_anchors=True)
    sizes = {
        (image, label): int((labels[image] == label).sum())
        for image in range(3)
        for label in labels[image].unique().tolist()
        if label != IGNORE
    }
    _, found, images, places = sampled(emb, labels, sample)
    taken = set(zip(images.tolist(), found.tolist(), strict=True))
    assert taken == {group for group, size in sizes.items() if size > 1}
    assert loss.stats.groups == len(sizes)
    assert loss.stats.groups_skipped == len(sizes) - len(taken) > 0
    hard = preds.flatten()[places] != found
    assert loss.stats.hard_share == pytest.approx(float(hard.float().mean()))
    assert 0 < loss.stats.hard_share < 1
    assert loss.stats.bank_occupancy == 0


def test_groups_that_are_too_many_are_skipped():
    emb, labels, _ = scene()
    loss = PixelContrastLoss(anchor_sampler=RandomAnchorSampler(max_anchors=5))
    loss(emb, labels)
    assert (loss.stats.groups, loss.stats.groups_skipped) == (12, 7)
    assert loss.stats.hard_share == 0


@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_similarities_are_means_over_pairs(with_bank, normalize):
    emb, labels, _ = scene()
    bank = MemoryBank(4, 8, pixel_slots=9, region_slots=5) if with_bank else None
    sampler = HardAnchorSampler(max_anchors=40, max_views=3)
    loss = PixelContrastLoss(anchor_sampler=sampler, bank=bank, normalize=normalize)
    with torch.autocast("cpu", torch.bfloat16):
        _, sample = loss(1e3 * emb, labels, return_anchors=True)
    rows, found, *_ = sampled(emb, labels, sample)
    cosines, same = rows @ rows.T, found[:, None] == found
    pairs = ~torch.eye(len(rows), dtype=torch.bool)
    stats = loss.stats
    assert stats.positive_similarity == pytest.approx(float(cosines[same & pairs].mean()), abs=1e-5)
    assert stats.negative_similarity == pytest.approx(float(cosines[~same].mean()), abs=1e-5)


@pytest.mark.parametrize(
    "mining", [None, HardNegativeSampler(strategy="hardest", num_negatives=3, num_positives=1)]
)
def test_anchors_and_entries_that_took_part(mining):
    emb, labels, _ = scene()
    bank = MemoryBank(5, 8, pixel_slots=20, region_slots=4, pixels_per_image=3)
    sampler = RandomAnchorSampler(max_anchors=6, max_views=1)
    labels[:] = torch.tensor([0, 1, 2])[:, None, None]
    loss = PixelContrastLoss(anchor_sampler=sampler, bank=bank, negative_sampler=mining)
    loss(emb, labels)
    # One anchor of each of three classes, and nothing in the bank before the call.
    assert (loss.stats.anchors, loss.stats.entries) == (0, 3)
    assert loss.stats.bank_occupancy == pytest.approx((3 * 3 + 3) / (5 * 24))
    labels[2] = 4
    loss(emb, labels)
    assert (loss.stats.anchors, loss.stats.entries) == (2, 3 + 12)


def test_entries_of_regions():
    emb, labels, _ = scene()
    loss = RegionContrastLoss()
    loss(emb, labels)
    assert loss.stats.entries == 12
    assert loss.stats.anchors == (labels != IGNORE).sum()


def test_with_nothing_there_all_are_zero():
    emb, labels, preds = scene()
    loss = PixelContrastLoss(bank=MemoryBank(4, 8))
    loss(emb, torch.full_like(labels, IGNORE), preds)
    assert [float(number) for number in loss.stats] == [0.0] * len(loss.stats)
    loss(emb[:0], labels[:0], preds[:0])
    assert [float(number) for number in loss.stats] == [0.0] * len(loss.stats)


def test_any_sampler_is_described():
    def first_five(labels, preds=None, *, ignore_index=255, generator=None):
        return AnchorSample(torch.arange(5), labels.flatten()[:5])

    emb, labels, preds = scene()
    loss = PixelContrastLoss(anchor_sampler=first_five)
    loss(emb, labels, preds)
    given = labels.flatten()[:5]
    assert loss.stats.groups == 12
    assert loss.stats.groups_skipped == 12 - len(set(given.tolist()) - {IGNORE})
    assert loss.stats.entries == (given != IGNORE).sum()


def test_they_are_of_the_last_call_and_hold_no_graph():
    emb, labels, preds = scene()
    loss = PixelContrastLoss()
    loss(emb.requires_grad_(), labels, preds)
    first = loss.stats
    assert not any(number.requires_grad for number in first)
    assert all(number.shape == () for number in first)
    assert loss.state_dict() == {}
    assert copy.deepcopy(loss).stats is None
    with torch.no_grad():
        loss(emb, torch.full_like(labels, IGNORE))
    assert loss.stats.entries == 0
    assert first.entries > 0


def test_finite_embeddings_never_make_them_nan():
    emb, labels, preds = scene()
    for scale in (1e-38, 1e30, 0.0):
        loss = PixelContrastLoss(normalize=False)
        loss((emb * scale).half() if scale == 0 else emb * scale, labels, preds)
        assert all(torch.isfinite(number) for number in loss.stats)


def test_one_sampled_pixel():
    emb, labels = torch.randn(1, 8, 2), torch.tensor([[3, IGNORE]])
    for predicted in (3, 1):
        loss = PixelContrastLoss()
        loss(emb, labels, torch.tensor([[predicted, 0]]))
        assert loss.stats.hard_share == float(predicted != 3)
        assert loss.stats.positive_similarity == loss.stats.negative_similarity == 0


def test_without_a_bank_the_classes_below_256_are_told_of():
    emb, labels = torch.randn(2, 8, 258), torch.arange(258).repeat(2, 1)
    loss = PixelContrastLoss(ignore_index=-1)
    loss(emb, labels)
    assert loss.stats.groups == 2 * 256


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_anchors_of_a_bank_with_one_slot(backend):
    bank = MemoryBank(1, 8, pixel_slots=0, region_slots=1)
    emb, labels = torch.randn(1, 8, 3), torch.zeros(1, 3, dtype=torch.int64)
    bank.update(emb, labels)
    mining = HardNegativeSampler(strategy="hardest")
    loss = PixelContrastLoss(
        bank=bank, contrast_with=("regions",), negative_sampler=mining, backend=backend
    )
    assert loss(emb, labels) == 0
    assert loss.stats.anchors == 3
    assert loss.stats.bank_occupancy == 1


def test_images_of_one_pixel():
    emb, labels = torch.randn(4, 8, 1), torch.tensor([[0], [1], [0], [2]])
    loss = PixelContrastLoss()
    loss(emb, labels)
    assert loss.stats.groups == 4
    assert loss.stats.groups_skipped == 0
