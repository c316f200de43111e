import pytest
import torch
from torch.nn import functional as F

from pixcontrast import (
    AnchorSample,
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast.functional import info_nce

IGNORE = 255
EVERY_PIXEL = RandomAnchorSampler(max_anchors=10**6, max_views=10**6)
both_losses = pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])


def scene(seed=0, images=2, dim=6, size=(5, 7), classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(images, dim, *size, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return emb.requires_grad_(), labels


def rows_of(emb, labels):
    """All pixels as (B·P, D) unit vectors, and their labels."""
    return F.normalize(emb.flatten(2).transpose(1, 2).flatten(0, 1), dim=1), labels.flatten()


def test_every_pixel_against_the_batch():
    emb, labels = scene()
    loss = PixelContrastLoss(anchor_sampler=EVERY_PIXEL)(emb, labels)
    expected = info_nce(*rows_of(emb, labels), backend="dense")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, emb), torch.autograd.grad(expected, emb), rtol=1e-10, atol=1e-15
    )


def test_options_reach_the_equation():
    emb, labels = scene()
    options = {"temperature": 0.3, "denominator": "all", "reduction": "sum"}
    loss = PixelContrastLoss(
        anchor_sampler=EVERY_PIXEL, base_temperature=0.07, normalize=False, **options
    )
    rows = emb.flatten(2).transpose(1, 2).flatten(0, 1)
    expected = info_nce(rows, labels.flatten(), backend="dense", **options) * (0.3 / 0.07)
    torch.testing.assert_close(loss(emb, labels), expected, rtol=1e-12, atol=0)


def test_the_bank_is_contrasted_with_and_then_fed():
    bank = MemoryBank(4, 6, pixel_slots=20, region_slots=10, pixels_per_image=3)
    loss = PixelContrastLoss(anchor_sampler=EVERY_PIXEL, bank=bank)
    assert loss.contrast_with == ("batch", "pixels", "regions")
    emb, labels = scene()
    first = loss(emb, labels)
    # What has not been written does not count: the empty bank changes nothing.
    torch.testing.assert_close(first, PixelContrastLoss(anchor_sampler=EVERY_PIXEL)(emb, labels))
    assert bank.region_count.tolist() == [2] * 4

    emb, labels = scene(1)
    pieces = [(None, None), bank.entries("pixels"), bank.entries("regions")]
    pieces = [[p if p is None else p.clone() for p in pair] for pair in pieces]
    for contrast in [("batch", "pixels", "regions"), ("pixels", "regions"), ("regions",)]:
        chosen = [pieces[("batch", "pixels", "regions").index(name)] for name in contrast]
        expected = info_nce(*rows_of(emb, labels), *zip(*chosen, strict=True), backend="dense")
        loss = PixelContrastLoss(
            anchor_sampler=EVERY_PIXEL, bank=bank, contrast_with=contrast, update_bank=False
        )
        torch.testing.assert_close(loss(emb, labels), expected, rtol=1e-6, atol=0)
    assert bank.region_count.tolist() == [2] * 4


def region_means(emb, labels, classes):
    unit = F.normalize(emb.detach(), dim=1)
    means, names = [], []
    for image in range(len(emb)):
        for label in range(classes):
            member = labels[image] == label
            if member.any():
                means.append(F.normalize(unit[image][:, member].mean(1), dim=0))
                names.append(label)
    return torch.stack(means), torch.tensor(names)


@pytest.mark.parametrize("with_bank", [False, True])
def test_regions_of_the_batch(with_bank):
    emb, labels = scene()
    labels[0][labels[0] == 2] = 1
    names = labels * 37 if not with_bank else labels
    names = torch.where(labels == IGNORE, IGNORE, names)
    bank = MemoryBank(4, 6) if with_bank else None
    loss = RegionContrastLoss(anchor_sampler=EVERY_PIXEL, bank=bank, contrast_with=("batch",))
    expected = info_nce(*rows_of(emb, labels), *region_means(emb, labels, 4), backend="dense")
    actual = loss(emb, names)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(actual, emb), torch.autograd.grad(expected, emb), rtol=1e-9, atol=1e-14
    )
    assert RegionContrastLoss().contrast_with == ("batch",)
    assert RegionContrastLoss(bank=MemoryBank(4, 6)).contrast_with == ("batch", "regions")


@both_losses
@pytest.mark.parametrize("size", [(35,), (5, 7), (1, 5, 7)])
def test_any_number_of_dimensions(kind, size):
    emb, labels = scene()
    preds = torch.randint(0, 4, labels.shape)
    loss = kind(anchor_sampler=HardAnchorSampler(max_anchors=20))
    expected = loss(emb, labels, preds, generator=torch.Generator().manual_seed(1))
    maps = [tensor.view(2, *size) for tensor in (labels, preds)]
    actual = loss(emb.view(2, 6, *size), *maps, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(actual, expected)


@both_losses
def test_points_are_one_image(kind):
    emb, labels = scene(images=1)
    preds, logits = torch.randint(0, 4, labels.shape), torch.randn(1, 4, 5, 7)
    weight = torch.rand(labels.shape)
    loss = kind(anchor_sampler=HardAnchorSampler(max_anchors=20), bank=MemoryBank(4, 6))
    points = emb.flatten(2)[0].T
    for given, of_points in [
        (None, None),
        (preds, preds.flatten()),
        (logits, logits.flatten(2)[0].T),
    ]:
        results = []
        for arguments, point_weight in [
            ((emb, labels, given), weight),
            ((points, labels.flatten(), of_points), weight.flatten()),
        ]:
            loss.bank = MemoryBank(4, 6)
            results.append(
                loss(*arguments, weight=point_weight, generator=torch.Generator().manual_seed(1))
            )
        torch.testing.assert_close(*results)


def test_labels_predictions_and_weights_are_resized():
    emb, labels = scene()
    logits, weight = torch.randn(2, 4, 5, 7), torch.rand(2, 5, 7)
    loss = PixelContrastLoss(anchor_sampler=HardAnchorSampler(max_anchors=20))

    def larger(maps, by):
        return maps.repeat_interleave(by, -2).repeat_interleave(by, -1)

    results = [
        loss(emb, *arguments, weight=weights, generator=torch.Generator().manual_seed(1))
        for *arguments, weights in [
            (labels, logits, weight),
            (labels, logits.argmax(1), weight),
            (larger(labels, 4), larger(logits, 2), larger(weight, 3)),
            (larger(labels, 2), larger(logits.argmax(1), 3), weight),
        ]
    ]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_weights_are_of_pixels():
    emb, labels = scene()
    weight = torch.rand(labels.shape, dtype=torch.float64)
    loss = PixelContrastLoss(anchor_sampler=EVERY_PIXEL)(emb, labels, weight=weight)
    expected = info_nce(*rows_of(emb, labels), weight=weight.flatten(), backend="dense")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@both_losses
def test_anchors_are_returned(kind):
    emb, labels = scene()
    sampler = HardAnchorSampler(max_anchors=20)
    loss = kind(anchor_sampler=sampler, reduction="none")
    preds = torch.randint(0, 4, labels.shape)
    value, sample = loss(
        emb, labels, preds, generator=torch.Generator().manual_seed(1), return_anchors=True
    )
    assert isinstance(sample, AnchorSample)
    assert value.shape == sample.labels.shape == (20,)
    expected = sampler(
        labels.flatten(1), preds.flatten(1), generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(sample.indices, expected.indices)


def test_when_the_bank_is_fed():
    emb, labels = scene()

    def count(loss, emb=emb):
        loss.bank = MemoryBank(4, 6)
        loss(emb, labels)
        return int(loss.bank.region_count.sum())

    assert count(PixelContrastLoss(bank=MemoryBank(4, 6))) == 8
    assert count(PixelContrastLoss(bank=MemoryBank(4, 6), update_bank=False)) == 0
    assert count(PixelContrastLoss(bank=MemoryBank(4, 6)).eval()) == 0
    with torch.no_grad():
        assert count(PixelContrastLoss(bank=MemoryBank(4, 6))) == 0
    assert count(PixelContrastLoss(bank=MemoryBank(4, 6)), emb.detach()) == 8


@both_losses
@pytest.mark.parametrize(
    "case",
    ["nothing labelled", "one class", "one pixel", "no image", "no pixels", "zero embeddings",
     "all alike", "wide class ids", "no labels for no pixels"],
)  # fmt: skip
@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
def test_degenerate_inputs(kind, case, with_bank, mining):
    emb, labels = scene(dtype=torch.float32)
    emb = emb.detach()
    if case == "nothing labelled":
        labels[:] = IGNORE
    elif case == "one class":
        labels[:] = 3
    elif case == "one pixel":
        emb, labels = emb[:1, :, :1, :1], labels[:1, :1, :1]
    elif case == "no image":
        emb, labels = emb[:0], labels[:0]
    elif case == "no pixels":
        emb, labels = emb[..., :0], labels[..., :0]
    elif case == "no labels for no pixels":
        emb, labels = emb[:, :, :0], labels[:, :0, :0]
    elif case == "zero embeddings":
        emb = torch.zeros_like(emb)
    elif case == "all alike":
        emb = torch.ones_like(emb)
    elif case == "wide class ids" and not with_bank:
        labels[labels == 3] = 1_000_000
    emb.requires_grad_()
    bank = MemoryBank(4, 6) if with_bank else None
    loss = kind(bank=bank, negative_sampler=mining)
    for _ in range(2):
        value = loss(emb, labels)
        assert torch.isfinite(value)
        (gradient,) = torch.autograd.grad(value, emb)
        assert torch.isfinite(gradient).all()
        if case == "zero embeddings":
            assert (gradient == 0).all()


@both_losses
def test_same_seed_same_bits(kind):
    emb, labels = scene(size=(32, 32), dtype=torch.float32)
    runs = []
    for _ in range(2):
        bank = MemoryBank(4, 6, pixel_slots=30, region_slots=9)
        loss = kind(
            anchor_sampler=HardAnchorSampler(max_anchors=300),
            negative_sampler=HardNegativeSampler(ratio=0.5, num_negatives=20),
            bank=bank,
        )
        generator = torch.Generator().manual_seed(3)
        values = [loss(emb, labels, generator=generator) for _ in range(3)]
        runs.append([*values, *torch.autograd.grad(sum(values), emb), *bank.state_dict().values()])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@both_losses
def test_no_argument_is_changed(kind):
    emb, labels = scene()
    arguments = [emb, labels, torch.randn(2, 4, 5, 7)]
    weight = torch.rand(2, 5, 7)
    before = [tensor.detach().clone() for tensor in (*arguments, weight)]
    kind(bank=MemoryBank(4, 6))(*arguments, weight=weight).backward()
    for tensor, copy in zip((*arguments, weight), before, strict=True):
        assert torch.equal(tensor, copy)


@both_losses
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_autocast(kind, dtype):
    emb, labels = scene()
    expected = kind(anchor_sampler=EVERY_PIXEL, bank=MemoryBank(4, 6))(emb, labels)
    low = emb.detach().to(dtype).requires_grad_()
    loss = kind(anchor_sampler=EVERY_PIXEL, bank=MemoryBank(4, 6, dtype=dtype))
    value = loss(low, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=0.01, atol=0)
    value.backward()
    assert low.grad.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        value = kind(anchor_sampler=EVERY_PIXEL)(emb.detach().float(), labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=0.01, atol=0)


def test_a_sampler_of_ones_own():
    emb, labels = scene()
    seen = {}

    def first_pixels(labels, preds=None, *, ignore_index=255, generator=None):
        seen.update(labels=labels, preds=preds)
        return AnchorSample(torch.arange(5), labels.flatten()[:5])

    PixelContrastLoss(anchor_sampler=first_pixels)(emb, labels)
    assert seen["labels"].shape == (2, 35)
    assert seen["preds"] is None


def test_modules_say_what_they_are():
    loss = PixelContrastLoss(bank=MemoryBank(4, 6, pixel_slots=3), temperature=0.2)
    shown = repr(loss)
    for part in ("temperature=0.2", "HardAnchorSampler(max_anchors=1024", "pixel_slots=3", "4, 6"):
        assert part in shown
    assert "8, 4, kind='linear', norm='batch'" in repr(ProjectionHead(8, 4, kind="linear"))
    with pytest.raises(TypeError):
        PixelContrastLoss(0.1)


@both_losses
def test_deterministic_algorithms_are_enough(kind):
    emb, labels = scene()
    torch.use_deterministic_algorithms(True)
    try:
        loss = kind(bank=MemoryBank(4, 6), negative_sampler=HardNegativeSampler())
        for _ in range(2):
            loss(emb, labels, torch.randn(2, 4, 5, 7)).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.isfinite(emb.grad).all()


def test_a_group_is_refused_by_a_pytorch_without_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "GroupMember")
    with pytest.raises(TypeError, match="process_group: expected a process group"):
        PixelContrastLoss(process_group=3)
