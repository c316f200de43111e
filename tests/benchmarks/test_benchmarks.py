"""What the benchmarks compare with: the authors' step and drawn batches."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from benchmarks._ways.authors_step import AuthorsStep, Queues, queue_entries
from benchmarks._ways.batches import SHAPES, SHARE_WRONG, Batch, draw_patches
from benchmarks._ways.steps import BASE_TEMPERATURE, TEMPERATURE
from pixcontrast import MemoryBank
from pixcontrast.functional import info_nce

CPU = torch.device("cpu")
SMALL = SHAPES["small"]
FACTOR = TEMPERATURE / BASE_TEMPERATURE


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("with_queue", [False, True])
def test_authors_loss_is_info_nce_times_a_factor(with_queue):
    views = unit(6, 5, 16).requires_grad_()
    # Class 1 stands first in the queue, where the authors leave an entry out for each anchor.
    groups = torch.tensor([2.0, 3.0, 2.0, 0.0, 4.0, 3.0], dtype=torch.float64)
    entries = queue_entries(unit(5, 40, 16)) if with_queue else (None, None)
    authors = AuthorsStep().contrast(views, groups, *entries)
    anchors = torch.cat(views.unbind(dim=1))
    entry_labels = entries[1].long() if with_queue else None
    ours = FACTOR * info_nce(anchors, groups.long().repeat(5), entries[0], entry_labels)
    torch.testing.assert_close(authors, ours, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, views)[0] for loss in (authors, ours)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_authors_loss_of_a_batch_is_the_loss_of_what_they_sample():
    batch = Batch.draw(SMALL, CPU)
    authors = AuthorsStep(max_samples=64, max_views=8)
    torch.manual_seed(0)
    value = authors.loss(batch.emb, batch.labels, batch.logits)
    labels = batch.labels[:, ::4, ::4].flatten(1)
    numbers = torch.arange(labels.numel(), dtype=torch.float32).view(*labels.shape, 1)
    predicted = batch.logits.argmax(dim=1).flatten(1)
    torch.manual_seed(0)
    views, groups = authors.sample(numbers, labels, predicted)
    taken = views.squeeze(2).long()
    assert taken.unique().numel() == taken.numel() == 56
    assert (labels.flatten()[taken] == groups[:, None]).all()
    assert ((predicted.flatten()[taken] != groups[:, None]).sum(dim=1) <= 4).all()
    anchors = batch.emb.movedim(1, -1).flatten(0, -2)[taken.T.flatten()]
    ours = FACTOR * info_nce(anchors, groups.long().repeat(8))
    torch.testing.assert_close(value, ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("num_hard", "expected"), [(3, 3), (60, 4), (97, 5), (100, 8)])
def test_authors_take_half_of_each_kind_and_fill_up(num_hard, expected):
    predicted = (torch.arange(100) < num_hard).long()[None]
    numbers = torch.arange(100.0).view(1, 100, 1)
    authors = AuthorsStep(max_samples=8, max_views=8)
    views, _ = authors.sample(numbers, torch.zeros_like(predicted), predicted)
    assert int((views < num_hard).sum()) == expected
    assert views.unique().numel() == 8


def test_authors_regions_are_those_of_the_bank():
    batch = Batch.draw(SMALL, CPU)
    emb = batch.emb.detach()
    bank = MemoryBank(5, 16, pixel_slots=20, region_slots=20, ignore_index=-1)
    bank.update(emb, batch.labels)
    queues = Queues.of(torch.zeros(5, 20, 16), torch.zeros(5, 20, 16))
    AuthorsStep().enqueue(emb, batch.labels, queues)
    torch.testing.assert_close(queues.segments[1:], bank.regions[1:])
    assert torch.equal(queues.segment_next[1:], bank.region_next[1:])
    assert bank.region_count[1:].sum() > 0
    written = torch.linalg.vector_norm(queues.pixels, dim=2) > 0.5
    # Each image moves the pointer by 1, so that the second writes over nine of the first's ten.
    images = queues.segment_next
    assert written.sum(dim=1).tolist() == [0 if n == 0 else 9 + n for n in images.tolist()]


def test_drawn_labels_look_like_a_segmentation():
    shape = replace(SHAPES["cityscapes"], images=4, height=64, width=128)
    labels, predicted = draw_patches(shape, torch.Generator().manual_seed(0))
    seen = labels[:, ::4, ::4]
    valid = seen >= 0
    assert 0.01 < 1 - valid.float().mean() < 0.1
    right = (predicted == seen)[valid].float().mean()
    assert 1 - right == pytest.approx(SHARE_WRONG, abs=0.03)
    for of_image in labels:
        assert 5 <= of_image[of_image >= 0].unique().numel() <= 12
    same_as_neighbour = (labels[..., 1:] == labels[..., :-1]).float().mean()
    assert same_as_neighbour > 0.97
