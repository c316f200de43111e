"""`contrast_with=("image",)`: anchors are contrasted with those of their own image."""

import pytest
import torch

from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast.functional import info_nce

CLASSES = 3
SAMPLER = HardAnchorSampler(max_anchors=40, max_views=5)


def scene(images=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(images, 8, 6, 6, generator=generator, dtype=dtype).requires_grad_()
    return emb, torch.randint(-1, CLASSES, (images, 6, 6), generator=generator)


def filled_bank():
    bank = MemoryBank(CLASSES, 8, pixel_slots=20, region_slots=6).double()
    emb, labels = scene(4, seed=1)
    bank.update(emb, labels, generator=torch.Generator().manual_seed(1))
    return bank


@pytest.mark.parametrize("backend", ["tiled", "dense"])
@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("strategy", [None, "hardest"])
def test_equal_to_one_call_for_each_image(backend, with_bank, denominator, reduction, strategy):
    bank = filled_bank() if with_bank else None
    mining = strategy and HardNegativeSampler(strategy=strategy, num_negatives=7, num_positives=2)
    sources = ("image", "pixels", "regions") if with_bank else ("image",)
    options = {"denominator": denominator, "negative_sampler": mining}
    loss = PixelContrastLoss(
        contrast_with=sources, bank=bank, anchor_sampler=SAMPLER, update_bank=False,
        reduction=reduction, backend=backend, **options,
    )  # fmt: skip
    emb, labels = scene()
    weight = torch.rand(labels.shape, generator=torch.Generator().manual_seed(5))
    value, sample = loss(emb, labels, weight=weight, return_anchors=True)
    (gradient,) = torch.autograd.grad(value.sum(), emb)

    rows = emb.movedim(1, -1).flatten(0, 2)[sample.indices]
    rows = torch.nn.functional.normalize(rows, dim=1)
    weights = weight.flatten()[sample.indices]
    queues = [] if bank is None else [bank.entries("pixels"), bank.entries("regions")]
    losses = torch.zeros(len(rows), dtype=torch.float64)
    total = 0.0
    for image in range(len(emb)):
        own = (sample.indices // 36 == image) & (sample.labels != 255)
        contrast = (
            (None, *(vectors for vectors, _ in queues)),
            (None, *(names for _, names in queues)),
        )
        given = (rows[own], sample.labels[own], *contrast)
        losses = losses.index_put(
            (own.nonzero()[:, 0],),
            info_nce(*given, reduction="none", weight=weights[own], backend="dense", **options),
        )
        counts = info_nce(*given, reduction="none", backend="dense", **options) > 0
        total += float(weights[own][counts].sum())
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[reduction]
    torch.testing.assert_close(value, expected)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), emb)
    torch.testing.assert_close(gradient, expected_gradient)


def test_other_images_do_not_matter():
    emb, labels = scene()
    loss = PixelContrastLoss(
        contrast_with=("image",), anchor_sampler=SAMPLER, reduction="none", backend="tiled"
    )
    values = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(2)
        value, sample = loss(emb, labels, generator=generator, return_anchors=True)
        values.append(value[sample.indices // 36 == 0])
        emb = torch.cat([emb[:1], 1 - emb[1:] * 2])
    assert values[0].abs().max() > 0
    torch.testing.assert_close(*values)


def test_no_image():
    emb, labels = scene(0)
    assert PixelContrastLoss(contrast_with=("image",))(emb, labels) == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="contrast_with"):
        PixelContrastLoss(contrast_with=("batch", "image"))
    loss = PixelContrastLoss(contrast_with=("image",))
    with pytest.raises(ValueError, match="points"):
        loss(torch.randn(9, 4), torch.zeros(9, dtype=torch.int64))
