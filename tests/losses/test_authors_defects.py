"""What the authors' released code gets wrong; their behaviour would fail each of these tests."""

import pytest
import torch
from torch.nn import functional as F

from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
)
from pixcontrast.functional import info_nce

IGNORE = 255


def coloured(labels, dim=8):
    """An embedding that says its own label: class c points along axis c."""
    axes = torch.eye(dim)
    return axes[labels.clamp(max=dim - 1)].movedim(-1, 1).contiguous()


def test_pixels_in_the_queue_are_of_the_class_they_stand_under():
    labels = torch.randint(0, 5, (4, 12, 12))
    bank = MemoryBank(5, 8)
    bank.update(coloured(labels), labels)
    for label in range(5):
        stored = bank.pixels[label, : bank.pixel_count[label]]
        assert len(stored) == 40
        assert torch.equal(stored, torch.eye(8)[label].expand(40, 8))


def test_the_pointer_moves_by_as_many_as_are_written():
    labels = torch.zeros(1, 12, 12, dtype=torch.int64)
    bank = MemoryBank(1, 8, pixel_slots=25)
    for written in (10, 20, 30):
        bank.update(torch.randn(1, 8, 12, 12), labels)
        assert int(bank.pixel_next[0]) == written % 25
        assert int(bank.pixel_count[0]) == min(written, 25)


def test_a_write_across_the_end_goes_to_the_end_and_the_start():
    bank = MemoryBank(1, 3, pixel_slots=4, region_slots=0, pixels_per_image=3)
    labels = torch.zeros(1, 3, dtype=torch.int64)
    first, second = torch.eye(3), -torch.eye(3)
    bank.update(first.T[None], labels)
    bank.update(second.T[None], labels)
    # Slot 3, then slots 0 and 1; slot 2 keeps the last of the first image.
    assert (bank.pixels[0].sum(dim=1) < 0).tolist() == [True, True, False, True]


def test_labels_of_another_factor_than_the_features():
    # Features 4×6 of labels 9×13: no stride takes one to the other, and nearest does.
    labels = torch.randint(0, 5, (2, 9, 13))
    seen = F.interpolate(labels[:, None].float(), size=(4, 6), mode="nearest")[:, 0].long()
    bank = MemoryBank(5, 8, pixel_slots=20, region_slots=0, pixels_per_image=24)
    bank.update(coloured(seen), labels)
    assert (
        bank.pixel_count.tolist()
        == torch.bincount(seen.flatten(), minlength=5).clamp(max=20).tolist()
    )
    for label in range(5):
        assert (bank.pixels[label, : bank.pixel_count[label], label] == 1).all()


def test_class_0_enters_the_bank_and_unwritten_slots_push_nobody():
    labels = torch.tensor([[0, 0, 1, 1]])
    emb = torch.randn(1, 8, 4)
    bank = MemoryBank(3, 8)
    bank.update(emb, labels)
    assert bank.pixel_count.tolist() == [2, 2, 0]
    assert bank.region_count.tolist() == [1, 1, 0]
    anchors = F.normalize(torch.randn(4, 8), dim=1)
    entries, entry_labels = bank.entries("pixels")
    written = entry_labels != IGNORE
    torch.testing.assert_close(
        info_nce(anchors, labels[0], entries, entry_labels),
        info_nce(anchors, labels[0], entries[written], entry_labels[written]),
    )


def test_an_empty_queue_says_nothing():
    bank = MemoryBank(3, 8)
    emb = torch.randn(2, 8, 6, 6, requires_grad=True)
    loss = PixelContrastLoss(bank=bank, contrast_with=("pixels", "regions"))
    value = loss(emb, torch.randint(0, 3, (2, 6, 6)))
    value.backward()
    assert value == 0
    assert (emb.grad == 0).all()


def test_only_the_anchor_itself_is_masked_not_the_queue_column_of_its_number():
    anchors = F.normalize(torch.randn(3, 4), dim=1)
    anchor_labels = torch.tensor([0, 1, 2])
    # Entry i is the only positive of anchor i: masked like a self, each anchor would have none.
    entries, entry_labels = F.normalize(torch.randn(3, 4), dim=1), torch.tensor([0, 1, 2])
    each = info_nce(anchors, anchor_labels, entries, entry_labels, reduction="none")
    s = anchors @ entries.T / 0.1
    expected = s.logsumexp(dim=1) - s.diagonal()
    torch.testing.assert_close(each, expected)
    assert (each > 0).all()


def test_no_class_in_the_batch_is_no_crash():
    emb = torch.randn(2, 8, 6, 6, requires_grad=True)
    value = PixelContrastLoss()(emb, torch.full((2, 6, 6), IGNORE))
    value.backward()
    assert value == 0
    assert (emb.grad == 0).all()


@pytest.mark.parametrize("length", [1.0, 1e4])
def test_a_single_class_without_normalisation_is_finite(length):
    emb = (length * torch.randn(2, 8, 6, 6)).requires_grad_()
    value = PixelContrastLoss(normalize=False)(emb, torch.zeros(2, 6, 6, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert torch.isfinite(emb.grad).all()


def test_one_view_of_a_class_seen_once_is_no_nan():
    labels = torch.tensor([[0, 0, 0, 1]])
    emb = torch.randn(1, 8, 4, requires_grad=True)
    loss = PixelContrastLoss(anchor_sampler=HardAnchorSampler(max_views=1))
    value = loss(emb, labels)  # each anchor's only positive is itself
    value.backward()
    assert value == 0
    assert torch.isfinite(emb.grad).all()


def test_more_groups_than_the_budget_still_give_anchors():
    labels = torch.arange(50)[None, None].repeat(4, 3, 1)  # 200 groups
    emb = torch.randn(4, 8, 3, 50, requires_grad=True)
    loss = PixelContrastLoss(anchor_sampler=HardAnchorSampler(max_anchors=64))
    value, sample = loss(emb, labels, return_anchors=True)
    assert (sample.labels != IGNORE).all()
    assert len(sample.labels) == 64
    assert torch.isfinite(value)
    assert value > 0


def test_a_single_view_is_as_often_hard_as_asked():
    labels = torch.zeros(1, 100, dtype=torch.int64)
    preds = (torch.arange(100) < 50).long()[None]
    sampler = HardAnchorSampler(max_anchors=1, max_views=1)
    hard = sum(int(sampler(labels, preds).indices[0] < 50) for _ in range(400))
    assert 150 < hard < 250


def test_classes_of_few_pixels_are_not_dropped():
    labels = torch.zeros(1, 1000, dtype=torch.int64)
    labels[0, :3] = 1  # far fewer than max_views
    sample = HardAnchorSampler(max_anchors=1024, max_views=100)(labels)
    assert int((sample.labels == 1).sum()) == 3
    assert int((sample.labels == 0).sum()) == 100


def test_nothing_is_tied_to_a_device_or_to_float32():
    emb = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    loss = PixelContrastLoss(bank=MemoryBank(3, 8, dtype=torch.float64))
    value = loss(emb, torch.randint(0, 3, (2, 6, 6)))
    assert value.dtype == torch.float64
    assert value.device == emb.device


@pytest.mark.parametrize("strategy", ["hardest", "semi-hard", "random"])
def test_the_papers_sampling_of_negatives_is_there(strategy):
    emb, labels = torch.randn(2, 8, 6, 6), torch.randint(0, 3, (2, 6, 6))
    every = RandomAnchorSampler(max_anchors=72, max_views=72)
    mining = HardNegativeSampler(strategy=strategy, num_negatives=5, num_positives=5)
    mined = PixelContrastLoss(anchor_sampler=every, negative_sampler=mining)(emb, labels)
    plain = PixelContrastLoss(anchor_sampler=every)(emb, labels)
    assert torch.isfinite(mined)
    assert abs(float(mined - plain)) > 0.05
