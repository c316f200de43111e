"""`projection=`: sample first, project after. The result is that of the projected map."""

import copy
import itertools

import pytest
import torch
from torch import nn

from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RegionContrastLoss,
)

CLASSES, CHANNELS, DIM = 3, 6, 8
SAMPLER = HardAnchorSampler(max_anchors=24, max_views=4)
MINING = HardNegativeSampler(ratio=0.5, num_negatives=6, num_positives=3)
SPATIAL = {"points": None, "1d": (31,), "2d": (6, 5), "3d": (3, 4, 5)}
HEADS = {
    "no norm": lambda: ProjectionHead(CHANNELS, DIM, norm=None),
    "layer norm": lambda: ProjectionHead(CHANNELS, DIM, norm="layer"),
    "linear": lambda: ProjectionHead(CHANNELS, DIM, kind="linear"),
    "a module of one's own": lambda: Rowwise(CHANNELS, DIM),
}
BANKS = {
    "no bank": None,
    "both queues": {},
    "drawn regions": {"pixels_per_region": 4},
    "pixels": {"region_slots": 0},
    "regions": {"pixel_slots": 0},
    "drawn regions alone": {"pixel_slots": 0, "pixels_per_region": 5},
}
OPTIONS = {
    "plain": {},
    "mined": {"negative_sampler": MINING},
    "supcon": {"denominator": "all", "normalize": False},
    "unreduced": {"reduction": "none", "base_temperature": 0.07},
}


class Rowwise(nn.Linear):
    """A projection of rows (n, C), which can also be called with maps (B, C, *S)."""

    def forward(self, features):
        return torch.tanh(super().forward(features.movedim(1, -1))).movedim(-1, 1)


class Spy(nn.Module):
    """Records the shape of each input, and whether the call was made in training mode."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.calls = []

    def forward(self, rows):
        self.calls.append((tuple(rows.shape), self.head.training))
        return self.head(rows)


def batch_of(spatial, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (40,) if spatial is None else (2, *spatial)
    labels = torch.randint(-1, CLASSES, shape, generator=generator)
    size = (40, CHANNELS) if spatial is None else (2, CHANNELS, *spatial)
    features = torch.randn(size, generator=generator, dtype=dtype).requires_grad_()
    preds = torch.randint(0, CLASSES, shape, generator=generator)
    weight = torch.rand(shape, generator=generator)
    return features, labels, preds, weight.masked_fill(weight < 0.1, 0.0)


def steps(form, head, bank, spatial, options, *, project_first, training=True, count=2):
    """Losses, gradients, anchors and bank of some steps."""
    if bank is not None:
        sizes = {"pixel_slots": 9, "region_slots": 5, "pixels_per_image": 3, **bank}
        bank = MemoryBank(CLASSES, DIM, **sizes).double()
    loss = form(
        projection=None if project_first else head, anchor_sampler=SAMPLER, bank=bank, **options
    ).train(training)
    results = []
    for seed in range(count):
        features, labels, preds, weight = batch_of(spatial, seed)
        generator = torch.Generator().manual_seed(seed)
        value, sample = loss(
            head(features) if project_first else features,
            labels, preds, weight=weight, generator=generator, return_anchors=True,
        )  # fmt: skip
        inputs = (features, *head.parameters())
        results += [value, *sample, *torch.autograd.grad(value.sum(), inputs)]
        results.append(generator.get_state())
    if bank is not None:
        results += bank.state_dict().values()
    return results


def compare(form, head, bank, spatial, options, **more):
    projected, sampled = (
        steps(form, copy.deepcopy(head), bank, spatial, options, project_first=first, **more)
        for first in (True, False)
    )
    assert len(projected) == len(sampled)
    for expected, actual in zip(projected, sampled, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    assert projected[0].abs().max() > 0


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("bank", BANKS.values(), ids=BANKS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equal_to_the_projected_map(form, bank, options):
    torch.manual_seed(0)
    head = HEADS["no norm"]().double()
    compare(form, head, bank, SPATIAL["2d"], options)


@pytest.mark.parametrize("make_head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("spatial", SPATIAL.values(), ids=SPATIAL)
@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
def test_heads_and_shapes(make_head, spatial, form):
    torch.manual_seed(0)
    compare(form, make_head().double(), BANKS["both queues"], spatial, {})


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("bank", [BANKS["both queues"], BANKS["drawn regions"]], ids=str)
def test_in_eval_mode(form, bank):
    head = ProjectionHead(CHANNELS, DIM).double()
    head.layers[1].running_mean.normal_()
    compare(form, head.eval(), bank, SPATIAL["2d"], {}, training=False, count=1)


@pytest.mark.parametrize("with_bank", [False, True])
def test_intra_image(with_bank):
    sources = ("image", "pixels", "regions") if with_bank else ("image",)
    head = HEADS["no norm"]().double()
    bank = BANKS["drawn regions"] if with_bank else None
    compare(PixelContrastLoss, head, bank, SPATIAL["2d"], {"contrast_with": sources})


def test_the_map_is_never_projected():
    """One call in training mode, of the sampled pixels: anchors and those of the bank."""
    spy = Spy(ProjectionHead(CHANNELS, DIM))
    bank = MemoryBank(CLASSES, DIM, pixels_per_image=2, pixels_per_region=4)
    loss = PixelContrastLoss(projection=spy, bank=bank, anchor_sampler=SAMPLER)
    features, labels, preds, _ = batch_of((20, 20), dtype=torch.float32)
    loss(features, labels, preds).backward()
    assert spy.calls == [((24 + 2 * CLASSES * 4, CHANNELS), True)]
    assert int(spy.head.layers[1].num_batches_tracked) == 1
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_regions_of_all_pixels_are_projected_in_chunks_in_eval_mode(monkeypatch):
    from pixcontrast._pixels import regions

    monkeypatch.setattr(regions, "_CPU_CHUNK", 50 * CHANNELS)
    spy = Spy(ProjectionHead(CHANNELS, DIM))
    bank = MemoryBank(CLASSES, DIM, pixel_slots=0)
    loss = PixelContrastLoss(projection=spy, bank=bank, anchor_sampler=SAMPLER)
    features, labels, preds, _ = batch_of((20, 20), dtype=torch.float32)
    loss(features, labels, preds)
    in_training = [shape for shape, training in spy.calls if training]
    assert in_training == [(24, CHANNELS)]
    in_eval = [shape[0] for shape, training in spy.calls if not training]
    assert max(in_eval) == 50
    assert sum(in_eval) == 800
    assert spy.training
    assert spy.head.layers[1].training
    assert int(spy.head.layers[1].num_batches_tracked) == 1


def test_a_failing_projection_keeps_its_mode():
    class Fails(nn.Module):
        def forward(self, rows):
            raise ValueError("no")

    head = Fails()
    bank = MemoryBank(CLASSES, DIM)
    with pytest.raises(ValueError, match="no"):
        PixelContrastLoss(projection=head, bank=bank)(*batch_of((4, 4))[:2])
    assert head.training
    assert int(bank.pixel_count.sum()) == 0


def test_padding_does_not_count_in_batch_statistics():
    """Rows that stand for padding repeat valid pixels, in turn, so the mean is that of these."""
    norm = nn.BatchNorm1d(CHANNELS, momentum=1.0)
    sampler = HardAnchorSampler(max_anchors=20, max_views=4)
    features, labels, *_ = batch_of((6, 5), dtype=torch.float32)
    labels[:] = -1
    labels[0, 0], labels[1, 0] = 1, 2  # two groups of five pixels: eight anchors, K = 20
    loss = PixelContrastLoss(projection=norm, anchor_sampler=sampler)
    generator = torch.Generator().manual_seed(0)
    _, sample = loss(features, labels, generator=generator, return_anchors=True)
    valid = sample.indices[sample.labels != 255]
    assert len(valid) == 8
    rows = features.detach().flatten(2).transpose(1, 2).flatten(0, 1)[valid]
    expected = rows.repeat(3, 1)[:20].mean(dim=0)
    torch.testing.assert_close(norm.running_mean, expected)


def test_no_valid_pixel():
    norm = nn.BatchNorm1d(CHANNELS, momentum=1.0)
    features, labels, *_ = batch_of((6, 5), dtype=torch.float32)
    bank = MemoryBank(CLASSES, CHANNELS, pixels_per_region=2)
    loss = PixelContrastLoss(projection=norm, anchor_sampler=SAMPLER, bank=bank)
    value = loss(features, torch.full_like(labels, 255))
    value.backward()
    assert value == 0
    assert features.grad.abs().max() == 0
    assert norm.running_var.min() > 0.1  # pixels from all over the map, not one of them
    assert int(bank.pixel_count.sum() + bank.region_count.sum()) == 0


@pytest.mark.parametrize("images", [0, 2])
def test_no_pixel(images):
    loss = PixelContrastLoss(
        projection=ProjectionHead(CHANNELS, DIM), bank=MemoryBank(CLASSES, DIM)
    )
    features = torch.randn(images, CHANNELS, 0 if images else 4, 4, requires_grad=True)
    value = loss(features, torch.zeros(images, 4, 4, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert features.grad.shape == features.shape


def test_parameters_and_state():
    head = ProjectionHead(CHANNELS, DIM)
    loss = PixelContrastLoss(projection=head)
    assert set(loss.parameters()) == set(head.parameters())
    assert all(name.startswith("projection.") for name in loss.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype):
    head = ProjectionHead(CHANNELS, DIM)
    bank = MemoryBank(CLASSES, DIM, pixels_per_region=3)
    loss = PixelContrastLoss(projection=head, bank=bank, anchor_sampler=SAMPLER)
    features, labels, preds, _ = batch_of((6, 5), dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(features, labels, preds)
    value.backward()
    assert value.dtype == torch.float32
    assert features.grad.dtype == dtype
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


@pytest.mark.parametrize(
    ("form", "bank"),
    [
        *itertools.product([PixelContrastLoss], [None, {"pixels_per_region": 4}, {}]),
        (RegionContrastLoss, {}),
    ],
)
def test_compiled_as_one_graph(form, bank):
    torch.compiler.reset()  # of what other tests have compiled
    results = []
    torch.manual_seed(0)
    start = ProjectionHead(CHANNELS, DIM)
    for compiler in (None, "aot_eager"):
        head = copy.deepcopy(start)
        made = None if bank is None else MemoryBank(CLASSES, DIM, pixel_slots=9, **bank)
        loss = form(projection=head, bank=made, anchor_sampler=SAMPLER, backend="tiled")
        call = loss if compiler is None else torch.compile(loss, fullgraph=True, backend=compiler)
        of_steps = []
        for seed in range(2):
            torch.manual_seed(seed)
            features, labels, preds, _ = batch_of((6, 5), seed, torch.float32)
            value = call(features, labels, preds)
            of_steps += [value, *torch.autograd.grad(value, (features, *head.parameters()))]
        results.append([*of_steps, *loss.state_dict().values()])
        assert head.training
        assert head.layers[1].training
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Wrong(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, rows):
        return self.change(rows)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], ["24 rows", "(23, 6)"]),
        (lambda rows: rows[None], ["2 dimensions"]),
        (lambda rows: rows.long(), ["floating", "int64"]),
        (lambda rows: (rows,), ["tuple"]),
    ],
)
def test_a_wrong_output_is_named(change, words):
    loss = PixelContrastLoss(projection=Wrong(change), anchor_sampler=SAMPLER)
    with pytest.raises((ValueError, TypeError), match="the output of projection") as caught:
        loss(*batch_of((6, 5))[:2])
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.reshape(len(rows), DIM, -1).mean(2),
        lambda rows: rows[:, :DIM] / rows.detach().abs().max(),
    ],
)
def test_a_projection_need_not_take_calls_without_a_row(form, change):
    features = torch.randn(2, 2 * DIM, 6, 5, requires_grad=True)
    loss = form(projection=Wrong(change), bank=MemoryBank(CLASSES, DIM), anchor_sampler=SAMPLER)
    labels = torch.arange(60).view(2, 6, 5) % CLASSES
    loss(features, labels).backward()
    assert loss.bank.region_count.tolist() == [2, 2, 2]


def test_wrong_options_are_named():
    with pytest.raises(TypeError, match="projection: expected a Module or None; got function"):
        PixelContrastLoss(projection=lambda rows: rows)
    for form, training in itertools.product([PixelContrastLoss, RegionContrastLoss], [True, False]):
        loss = form(projection=ProjectionHead(CHANNELS, DIM), bank=MemoryBank(CLASSES, DIM + 1))
        with pytest.raises(ValueError, match=f"projection: expected D = {DIM + 1}, as the bank"):
            loss.train(training)(*batch_of((6, 5), dtype=torch.float32)[:2])
