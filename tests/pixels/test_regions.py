"""Region means against a loop over images and classes in float64, by every way through them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from pixcontrast import MemoryBank, RegionContrastLoss, _tensors
from pixcontrast._pixels import regions as _regions
from pixcontrast._pixels.regions import region_means, usable_pixels

IGNORED = -1
BAD = [float("nan"), float("inf"), -float("inf"), 0.0, 1e-31]


@pytest.fixture(params=["seen", "unseen"])
def _values(request, monkeypatch):
    """The CPU's way, and that of a device whose values the host must not wait for."""
    if request.param == "unseen":
        monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)


@pytest.fixture(params=[1, 12, 40, 1000], ids="chunks of {} components".format)
def _chunks(request, monkeypatch):
    """A pixel at a time, a part of an image, more than one image, everything."""
    monkeypatch.setattr(_regions, "_CPU_CHUNK", request.param)
    monkeypatch.setattr(_regions, "_DEVICE_CHUNK", request.param)


def scene(dtype=torch.float32, images=3, dim=4, size=(2, 4), slots=3):
    emb = torch.randn(images, dim, *size, dtype=torch.float64)
    emb = emb * 10 ** torch.empty(images, 1, *size).uniform_(-2, 2)  # lengths do not count
    labels = torch.randint(IGNORED, slots, (images, size[0] * size[1]))
    return emb.to(dtype), labels


def means_by_loops(emb, slots, num_slots):
    flat = emb.double().flatten(2)
    largest = flat.abs().amax(dim=1)
    usable = torch.isfinite(largest) & (largest > 1e-30)
    means = torch.zeros(len(emb), num_slots, flat.shape[1], dtype=torch.float64)
    present = torch.zeros(len(emb), num_slots, dtype=torch.bool)
    for image in range(len(emb)):
        for slot in range(num_slots):
            member = usable[image] & (slots[image] == slot)
            if member.any():
                pixels = flat[image][:, member] / largest[image, member]
                means[image, slot] = F.normalize(F.normalize(pixels, dim=0).mean(dim=1), dim=0)
                present[image, slot] = True
    return means, present, usable


def check(emb, slots, tolerance=1e-5):
    regions = region_means(emb, slots, 3)
    means, present, usable = means_by_loops(emb, slots, 3)
    assert torch.equal(regions.present, present)
    assert torch.equal(regions.usable, usable)
    assert torch.equal(usable_pixels(emb), usable)
    torch.testing.assert_close(regions.means.double(), means, rtol=0, atol=tolerance)
    assert regions.means.dtype == torch.promote_types(emb.dtype, torch.float32)


@pytest.mark.usefixtures("_values", "_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_means_of_directions(dtype):
    check(*scene(dtype))


@pytest.mark.usefixtures("_values", "_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-28, 1e-18, 1e-9, 1e15, 1e24, 1e37])
@pytest.mark.parametrize("how_many", ["one pixel", "an image", "all"])
def test_means_of_vectors_of_any_length(dtype, length, how_many):
    emb, slots = scene(dtype)
    where = {"one pixel": (1, ..., 0, 2), "an image": 1, "all": ...}[how_many]
    emb[where] *= length
    check(emb, slots)


@pytest.mark.usefixtures("_values", "_chunks")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_bad_pixel_reaches_no_other(bad, labelled):
    emb, slots = scene()
    emb[1, :, 0, 2] = bad
    emb[2, 1, 1, 1] = bad  # a single component: fatal where it is not finite
    slots[1, 2] = slots[2, 5] = 1 if labelled else IGNORED
    check(emb, slots)


@pytest.mark.usefixtures("_values")
def test_directions_that_cancel_are_no_region_beside_others():
    half = torch.randn(4, 500)
    emb = torch.stack([torch.randn(4, 1000), torch.cat([half, -half], dim=1)])
    regions = region_means(emb, torch.zeros(2, 1000).long(), 2)
    assert regions.present.tolist() == [[True, False], [False, False]]


def test_one_pixel_among_very_many_bad_ones_is_a_region():
    emb = torch.zeros(1, 1, 2_000_000)
    emb[..., 77] = -3.0
    regions = region_means(emb, torch.zeros(1, 2_000_000).long(), 1)
    assert regions.present.all()
    assert regions.means.tolist() == [[[-1.0]]]


@pytest.mark.usefixtures("_values")
@pytest.mark.parametrize("layout", ["channels last", "cropped", "points"])
def test_means_whatever_the_strides(layout):
    emb, slots = scene()
    if layout == "channels last":
        emb = emb.contiguous(memory_format=torch.channels_last)
    elif layout == "cropped":
        emb = F.pad(emb, (1, 2, 3, 4))[..., 3:-4, 1:-2]
    else:
        emb, slots = emb[:1].flatten(2)[0].T.contiguous().T[None], slots[:1]
    check(emb, slots)


@pytest.mark.usefixtures("_values")
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
def test_means_of_nothing(shape):
    regions = region_means(torch.zeros(shape), torch.zeros(shape[0], shape[2]).long(), 3)
    assert regions.means.shape == (shape[0], 3, 4)
    assert not regions.present.any()


def test_a_usual_map_takes_the_short_way(monkeypatch):
    largest = _tensors._largest_component

    def of_means_only(vectors, dim):
        if dim != 2:  # those of pixels
            raise AssertionError("the largest component was asked for")
        return largest(vectors, dim)

    monkeypatch.setattr(_tensors, "_largest_component", of_means_only)
    region_means(*scene(), 3)
    emb, slots = scene()
    emb[0, :, 0, 0] = 0
    with pytest.raises(AssertionError, match="largest component"):
        region_means(emb, slots, 3)


def test_without_a_bank_the_256_lowest_classes_of_an_image_have_regions():
    emb, labels = torch.randn(2, 4, 258), torch.arange(258).repeat(2, 1)
    loss = RegionContrastLoss(ignore_index=-1, reduction="none")
    losses, sample = loss(emb, labels, return_anchors=True)
    assert len(losses) == 2 * 258
    assert torch.equal(losses > 0, sample.labels < 256)


def test_a_loss_takes_the_regions_that_its_bank_has_made(monkeypatch):
    emb, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 3, (2, 10, 12))
    bank, expected = MemoryBank(3, 4), MemoryBank(3, 4)
    expected.update(emb, labels)
    loss = RegionContrastLoss(bank=bank)
    monkeypatch.setattr("pixcontrast.losses.region_means", None)
    loss(emb.requires_grad_(), labels)
    assert torch.equal(bank.regions, expected.regions)
    assert torch.equal(bank.pixel_count, expected.pixel_count)


def test_no_value_decides_a_shape(monkeypatch):
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    with FakeTensorMode():
        regions = region_means(torch.zeros(2, 4, 5, 6), torch.zeros(2, 30).long(), 3)
    assert regions.means.shape == (2, 3, 4)
    assert regions.usable.shape == (2, 30)
