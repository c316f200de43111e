"""The kernel that sums regions, beside the sums in parts of plain PyTorch in float64."""

import pytest
import torch

from pixcontrast import MemoryBank
from pixcontrast._pixels import region_kernel, regions
from pixcontrast._pixels.regions import (
    Regions,
    means_operator,
    region_means,
    sums_in_chunks,
)
from pixcontrast._tensors import SMALLEST

IGNORED = -1


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(region_kernel, "TILE_SIZE", 256)
    monkeypatch.setattr(region_kernel, "BLOCK_REGIONS", 16)


def scene(dtype=torch.float32, images=2, dim=5, pixels=150, slots=3):
    flat = torch.randn(images, dim, pixels, dtype=torch.float64)
    flat *= 10 ** torch.empty(images, 1, pixels, dtype=torch.float64).uniform_(-2, 2)
    return flat.to(dtype), torch.randint(IGNORED, slots, (images, pixels)), slots


def sums_of(flat, slots, num_slots):
    """The sums over all splits of the pixels, and which pixels are usable."""
    sums, counts, usable = region_kernel.sum_regions(flat, slots, num_slots, SMALLEST)
    members = (slots[:, None] == torch.arange(num_slots)[:, None]) & usable[:, None]
    assert torch.equal(counts.sum(dim=0), members.sum(dim=2))
    return torch.where((counts > 0)[..., None], sums, 0.0).sum(dim=0), usable


def check(flat, slots, num_slots):
    sums, usable = sums_of(flat, slots, num_slots)
    expected, expected_usable = sums_in_chunks(flat.double(), slots, num_slots)
    assert sums.dtype == torch.float32
    assert torch.equal(usable, expected_usable)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("dim", "slots"), [(1, 1), (5, 3), (16, 16), (20, 17), (33, 40)])
def test_sums(dtype, dim, slots):
    check(*scene(dtype, dim=dim, slots=slots))


@pytest.mark.parametrize("pixels", [1, 15, 16, 700])
def test_any_number_of_pixels(pixels):
    check(*scene(pixels=pixels, images=3))


def test_no_image():
    sums, usable = sums_of(*scene(images=0))
    assert (sums.shape, usable.shape) == ((0, 3, 5), (0, 150))


@pytest.mark.parametrize("length", [1e-37, 1e-28, 1e-9, 1e15, 1e37])
def test_vectors_of_any_length(length):
    flat, slots, count = scene()
    flat[0, :, 3] *= length
    flat[1] *= length
    sums, usable = sums_of(flat, slots, count)
    expected, expected_usable = sums_in_chunks(flat, slots, count)
    assert torch.equal(usable, expected_usable)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0])
def test_a_bad_pixel_reaches_no_other(bad):
    flat, slots, count = scene()
    flat[1, :, 4] = bad
    flat[1, 2, 9] = bad  # a single component: fatal where it is not finite
    slots[1, [4, 9]] = 1
    check(flat, slots, count)


def test_any_strides():
    flat, slots, count = scene(dim=6)
    expected = sums_of(flat, slots, count)
    for strided in (
        flat.transpose(1, 2).contiguous().transpose(1, 2),  # channels last
        torch.stack([flat, flat + 1], dim=3)[..., 0],
        torch.cat([flat, flat], dim=1)[:, 6:],
    ):
        assert not strided.is_contiguous()
        made = sums_of(strided, slots.T.contiguous().T, count)
        assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


@pytest.mark.parametrize("region_slots", [7, 0])
def test_a_bank_takes_in_the_same(region_slots, monkeypatch):
    banks = [MemoryBank(3, 5, pixel_slots=9, region_slots=region_slots) for _ in range(2)]
    emb, labels = torch.randn(2, 5, 6, 7), torch.randint(-1, 3, (2, 6, 7))
    emb[1, 2, 3] = float("nan")
    for bank, form in zip(banks, ("tiled", "triton"), strict=True):
        monkeypatch.setattr(regions, "choose", lambda backend, flat, form=form: form)
        bank.update(emb, labels, generator=torch.Generator().manual_seed(0))
    for one, other in zip(banks[0].buffers(), banks[1].buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_opcheck():
    torch.library.opcheck(means_operator, scene(dim=6, pixels=40))


@pytest.mark.parametrize(("dim", "slots", "pixels"), [(5, 3, 150), (20, 40, 700), (3, 2, 1)])
def test_means(dim, slots, pixels):
    """Labels in patches, so that a program skips pixels; a class whose pixels cancel out."""
    flat, labels, count = scene(dim=dim, slots=slots, pixels=pixels, images=3)
    labels = labels[:, : pixels // 9 + 1].repeat_interleave(9, dim=1)[:, :pixels].contiguous()
    labels[0], labels[1, : pixels // 2] = 1, IGNORED
    if pixels > 1:
        labels[2][labels[2] == 0] = IGNORED
        labels[2, :2], flat[2, :, 1] = 0, -flat[2, :, 0]
    flat[1, 0, pixels // 3] = float("nan")
    expected = region_means(flat, labels, count)
    made = Regions(*region_kernel.merge_regions(flat, labels, count, SMALLEST))
    assert torch.equal(made.usable, expected.usable)
    assert torch.equal(made.present, expected.present)
    assert not made.present.all()
    present = made.present[..., None]
    torch.testing.assert_close(
        torch.where(present, made.means, 0.0), torch.where(present, expected.means, 0.0),
        rtol=1e-5, atol=2e-6,
    )  # fmt: skip


@pytest.mark.parametrize("classes", [3, 16, 17, 50])
def test_any_number_of_regions_in_a_split(classes, monkeypatch):
    """More of them than a program sums at a time, and fewer; labels in any order."""
    monkeypatch.setattr(region_kernel, "MAX_SPLITS", 2)
    flat, _, _ = scene(dim=16, pixels=400, images=2)
    labels = 3 * torch.randint(0, classes, (2, 400))
    labels[:, ::7] = IGNORED
    check(flat, labels, 171)
