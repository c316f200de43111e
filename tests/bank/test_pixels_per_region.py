"""Regions of a few random pixels, and entries made from rows whose pixels were drawn before."""

import pytest
import torch
from torch.nn import functional as F

from pixcontrast import MemoryBank, PixelContrastLoss, RegionContrastLoss

CLASSES = 3
BAD = [float("nan"), float("inf"), -float("inf"), 0.0, 1e-31]


def bank_of(per_region, dim=4, **options):
    options = {"pixel_slots": 30, "region_slots": 9, "pixels_per_image": 3, **options}
    return MemoryBank(CLASSES, dim, pixels_per_region=per_region, **options)


def scene(images=2, dim=4, size=(5, 6), seed=0):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(images, dim, *size, generator=generator)
    return emb, torch.randint(-1, CLASSES, (images, *size), generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_direction_a_pixel(size=(5, 6)):
    """A map whose pixels are orthogonal: the components of a mean tell which pixels it has."""
    num_pixels = size[0] * size[1]
    lengths = torch.linspace(0.1, 10, num_pixels)
    return (torch.eye(num_pixels) * lengths).view(1, num_pixels, *size)


@pytest.mark.parametrize("region", [30, 10**12])
def test_with_enough_pixels_a_region_is_the_mean_of_all(region):
    emb, labels = scene()
    every, few = bank_of(None), bank_of(region)
    for bank in (every, few):
        bank.update(emb, labels, generator=seeded())
    assert torch.equal(every.pixels, few.pixels)  # the same draw
    torch.testing.assert_close(every.regions, few.regions)
    for counter in ("pixel_count", "pixel_next", "region_count", "region_next"):
        assert torch.equal(getattr(every, counter), getattr(few, counter))


@pytest.mark.parametrize("per_region", [30, 10**12])
def test_pixels_that_count_are_stored_before_others(per_region):
    emb, _ = scene()
    emb.flatten(2)[:, :, ::2] = torch.tensor(BAD).repeat(3)
    labels = torch.zeros(2, 5, 6, dtype=torch.int64)
    every, few = bank_of(None), bank_of(per_region)
    for bank in (every, few):
        bank.update(emb, labels, generator=seeded())
        assert bank.pixel_count.tolist() == [6, 0, 0]
        torch.testing.assert_close(bank.pixels[0, :6].norm(dim=1), torch.ones(6))
    taken = {tuple(pixel.tolist()) for pixel in few.pixels[0, :6]}
    assert len(taken) == 6


@pytest.mark.parametrize("pixels_per_image", [0, 1, 3, 8])
def test_a_region_is_the_mean_of_some_pixels_of_its_class(pixels_per_image):
    emb = one_direction_a_pixel()
    labels = torch.arange(30).view(1, 5, 6) % 4  # class 3 is beyond the bank
    labels[labels == 3] = 255
    labels.view(-1)[2:30:4] = 255
    labels.view(-1)[2] = 2  # class 2 has one pixel
    bank = bank_of(5, dim=30, pixels_per_image=pixels_per_image)
    seen = torch.zeros(30)
    for seed in range(9):
        bank.update(emb, labels, generator=seeded(seed))
    assert bank.region_count.tolist() == [9, 9, 9]
    for c in range(CLASSES):
        members = labels.flatten() == c
        expected = min(5, int(members.sum()))
        for region in bank.regions[c]:
            taken = region > 0
            assert int(taken.sum()) == expected
            assert not (taken & ~members).any()
            torch.testing.assert_close(region[taken], torch.full((expected,), expected**-0.5))
            seen += taken
    assert (seen[labels.flatten() != 255] > 0).all()  # not the same ones again and again


def test_the_same_generator_state_gives_the_same_bank():
    emb, labels = scene()
    first, again, other = bank_of(2), bank_of(2), bank_of(2)
    for bank, seed in ((first, 0), (again, 0), (other, 1)):
        bank.update(emb, labels, generator=seeded(seed))
    assert torch.equal(first.regions, again.regions)
    assert not torch.equal(first.regions, other.regions)


@pytest.mark.parametrize("value", BAD)
def test_bad_pixels_neither_enter_nor_count(value):
    emb, labels = torch.ones(1, 4, 1, 6), torch.zeros(1, 1, 6, dtype=torch.int64)
    emb[:, :, :, 1::2] = value
    bank = bank_of(4, pixels_per_image=4)
    for seed in range(7):
        bank.update(emb, labels, generator=seeded(seed))
    assert 7 <= int(bank.pixel_count[0]) <= 21  # of 4 drawn, between 1 and 3 are usable
    assert int(bank.region_count[0]) == 7
    torch.testing.assert_close(bank.regions[0, :7], torch.full((7, 4), 0.5))
    torch.testing.assert_close(
        bank.pixels[0].norm(dim=1), (torch.arange(30) < bank.pixel_count[0]).float()
    )
    nothing = bank_of(4)
    nothing.update(torch.full_like(emb, value), labels)
    assert not any(buffer.any() for buffer in nothing.buffers())


def test_pixels_that_cancel_out_are_no_region():
    emb = torch.tensor([1.0, -1.0]).repeat(1, 4, 3)[:, :, None]
    bank = bank_of(6)
    bank.update(emb, torch.zeros(1, 1, 6, dtype=torch.int64))
    assert bank.region_count.tolist() == [0, 0, 0]
    assert bank.pixel_count.tolist() == [3, 0, 0]


def test_no_pass_over_the_map(monkeypatch):
    for name in ("region_means", "usable_pixels"):
        monkeypatch.setattr(f"pixcontrast._pixels.regions.{name}", None)
    bank = bank_of(4)
    bank.update(*scene())
    assert bank.region_count.tolist() == [2, 2, 2]


@pytest.mark.parametrize("slots", [{}, {"pixel_slots": 0}, {"region_slots": 0}], ids=str)
@pytest.mark.parametrize("region", [1, 4])
def test_rows_of_drawn_pixels_give_the_entries_of_the_map(region, slots):
    emb, labels = scene()
    by_map, by_rows = bank_of(region, **slots), bank_of(region, **slots)
    by_map.update(emb, labels, generator=seeded())
    marked = labels.flatten(1)
    drawn = by_rows._entry_maker.draw_pixels(emb, marked, None, seeded())
    rows = emb.flatten(2).transpose(1, 2).reshape(-1, 4)[drawn.indices]
    assert (marked.flatten()[drawn.indices] >= 0)[drawn.valid.flatten()].all()
    by_rows._store(by_rows._entry_maker.entries_of(rows, drawn))
    for name, buffer in by_map.state_dict().items():
        assert torch.equal(buffer, by_rows.state_dict()[name]), name


def test_nothing_is_drawn_without_need():
    generator = seeded()
    before = generator.get_state()
    bank_of(None, pixel_slots=0).update(*scene(), generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("loss", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_the_bank_of_a_loss(loss, dtype):
    """Compiled and eager, in every dtype. The bank's regions are not those of the batch."""
    emb, labels = scene()
    banks = [bank_of(3, dtype=dtype) for _ in range(2)]
    criteria = [loss(bank=bank) for bank in banks]
    for criterion in (criteria[0], torch.compile(criteria[1], fullgraph=True, backend="eager")):
        for _ in range(2):
            torch.manual_seed(1)
            criterion(emb.to(dtype).requires_grad_(), labels).backward()
    for name, buffer in banks[0].state_dict().items():
        assert torch.equal(buffer, banks[1].state_dict()[name]), name
    assert banks[0].region_count.tolist() == [4, 4, 4]
    lengths = banks[0].regions[:, :4].double().norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=2**-8)


@pytest.mark.parametrize("points", [0, 1, 7])
def test_points_and_maps_without_pixels(points):
    bank = bank_of(3)
    bank.update(torch.randn(points, 4), torch.zeros(points, dtype=torch.int64))
    bank.update(torch.randn(2, 4, 0, 3), torch.zeros(2, 0, 3, dtype=torch.int64))
    assert int(bank.region_count[0]) == min(points, 1)
    assert int(bank.pixel_count[0]) == min(points, 3)


def test_the_mean_of_many_pixels_is_near_that_of_all():
    """The angle is about √((1 − ρ)/(nρ)) for a cosine ρ within the class."""
    generator = seeded()
    emb = (
        F.normalize(torch.ones(16), dim=0)[:, None] + torch.randn(16, 4000, generator=generator) / 4
    )
    labels = torch.zeros(1, 4000, dtype=torch.int64)
    unit = F.normalize(emb, dim=0)
    mean = F.normalize(unit.mean(dim=1), dim=0)
    rho = float(unit.mean(dim=1).square().sum())
    bank = bank_of(128, dim=16, region_slots=40)
    for seed in range(40):
        bank.update(emb[None], labels, generator=seeded(seed))
    angle = (bank.regions[0] @ mean).clamp(max=1).acos().mean()
    assert 0.5 < float(angle) / ((1 - rho) / (128 * rho)) ** 0.5 < 1.5


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_number_is_refused(value, error):
    with pytest.raises(error, match="pixels_per_region"):
        bank_of(value)
