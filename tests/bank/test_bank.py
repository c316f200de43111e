import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pixcontrast import (
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast._bank.ring import Rings, Shard, prepare_write, write_all

IGNORE = 255


class PlainBank:
    """The contract in lists: what the rings must hold after any sequence of updates."""

    def __init__(self, classes, slots):
        self.slots = slots
        self.rings = [[None] * slots for _ in range(classes)]
        self.written = [0] * classes

    def append(self, label, vector):
        self.rings[label][self.written[label] % self.slots] = vector
        self.written[label] += 1

    def expect(self, ring, count):
        for label, slots in enumerate(self.rings):
            there = [vector for vector in slots if vector is not None]
            assert int(count[label]) == len(there) == min(self.written[label], self.slots)
            if there:
                actual = ring[label, : len(there)].double()
                torch.testing.assert_close(actual, torch.stack(there), rtol=1e-6, atol=1e-6)


@given(
    slots=st.integers(1, 7),
    most=st.integers(1, 5),
    images=st.integers(1, 4),
    num_shards=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_rings_are_first_in_first_out(slots, most, images, num_shards, seed):
    """Whole, and spread over shards, each of which is written by itself."""
    generator = torch.Generator().manual_seed(seed)
    places = slots * num_shards
    # Rank first, so that place p is slot p // W of shard p mod W.
    rings = torch.zeros(num_shards, 3, slots, 2, dtype=torch.float64)
    counts, next_places = torch.zeros(2, num_shards, 3, dtype=torch.int64)
    plain = PlainBank(3, places)
    for _ in range(6):
        vectors = torch.rand(images, 3, most, 2, generator=generator, dtype=torch.float64)
        available = torch.randint(0, most + 1, (images, 3), generator=generator)
        for rank, of_shard in enumerate(zip(rings, counts, next_places, strict=True)):
            shard = Shard(rank, num_shards)
            valid = torch.arange(vectors.shape[2]) < available[..., None]
            write_all([prepare_write(Rings(*of_shard), vectors, valid, shard)])
        for image in range(images):
            for label in range(3):
                for entry in vectors[image, label, : available[image, label]]:
                    plain.append(label, entry)
        plain.expect(rings.permute(1, 2, 0, 3).flatten(1, 2), counts.sum(dim=0))
        expected = [written % places for written in plain.written]
        assert next_places.tolist() == [expected] * num_shards


def scene(seed=0, images=3, dim=4, size=(6, 5), classes=3):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(images, dim, *size, generator=generator)
    labels = torch.randint(0, classes, (images, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return emb, labels


def test_regions_are_means_of_directions():
    bank = MemoryBank(3, 4, region_slots=8, pixel_slots=0)
    plain = PlainBank(3, 8)
    for seed in range(4):
        emb, labels = scene(seed)
        emb = emb * torch.rand(3, 1, 6, 5) * 10  # lengths do not count
        bank.update(emb, labels)
        unit = F.normalize(emb.double(), dim=1)
        for image in range(3):
            for label in range(3):
                member = labels[image] == label
                if member.any():
                    plain.append(label, F.normalize(unit[image][:, member].mean(1), dim=0))
        plain.expect(bank.regions, bank.region_count)


def test_pixels_are_of_their_class_and_image_without_replacement():
    bank = MemoryBank(3, 4, pixel_slots=60, region_slots=0, pixels_per_image=5)
    emb, labels = scene(images=4)
    labels[2] = 1
    labels[3, :] = IGNORE
    labels[3, 0, :2] = 2
    bank.update(emb, labels)
    unit = F.normalize(emb, dim=1)
    for label in range(3):
        place = 0
        for image in range(4):
            available = unit[image][:, labels[image] == label].T
            if len(available) == 0:
                continue
            taken = bank.pixels[label, place : place + min(5, len(available))]
            distance = (taken[:, None] - available[None]).norm(dim=2)
            nearest = distance.argmin(dim=1).tolist()
            assert (distance.min(dim=1).values < 1e-6).all()
            assert len(set(nearest)) == len(taken)
            place += len(taken)
        assert int(bank.pixel_count[label]) == place


@pytest.mark.parametrize("pixels_per_image", [30, 31, 10**9, 2**62])
def test_an_image_may_give_all_of_its_pixels(pixels_per_image):
    """However many are allowed: what is held in between is no more than the map has."""
    emb, labels = scene()
    bank = MemoryBank(3, 4, pixel_slots=90, region_slots=0, pixels_per_image=pixels_per_image)
    bank.update(emb, labels)
    unit = F.normalize(emb.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    for label in range(3):
        expected = unit[labels.flatten() == label]
        assert int(bank.pixel_count[label]) == len(expected)
        held = bank.pixels[label, : len(expected)]
        torch.testing.assert_close(sorted(held.tolist()), sorted(expected.tolist()))


def test_pixels_are_drawn_alike():
    bank = MemoryBank(1, 8, pixel_slots=2, region_slots=0, pixels_per_image=2)
    emb, labels = torch.eye(8)[None], torch.zeros(1, 8, dtype=torch.int64)
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(8)
    for _ in range(2000):
        bank.update(emb, labels, generator=generator)
        seen += bank.pixels[0].sum(dim=0)
    assert (seen / 2000 - 0.25).abs().max() < 5 * (0.1875 / 2000) ** 0.5


@pytest.mark.filterwarnings("ignore:labels. no anchor had a negative:UserWarning")
def test_pixels_are_drawn_apart_from_the_anchors():
    # Of 100 pixels 10 become anchors and 10 enter the bank: 1 is both, on average.
    emb, labels = torch.eye(100)[None], torch.zeros(1, 100, dtype=torch.int64)
    bank = MemoryBank(1, 100, pixel_slots=10, region_slots=0)
    loss = PixelContrastLoss(
        anchor_sampler=RandomAnchorSampler(max_anchors=10), bank=bank, contrast_with=("batch",)
    )
    generator, both = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        _, sample = loss(emb, labels, generator=generator, return_anchors=True)
        both += int(bank.pixels[0].sum(dim=0)[sample.indices].sum())
    assert abs(both / 300 - 1) < 5 * (0.82 / 300) ** 0.5


def test_no_value_decides_a_shape(monkeypatch):
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    with FakeTensorMode():
        bank = MemoryBank(3, 4)
        bank.update(torch.zeros(2, 4, 5, 6), torch.zeros(2, 10, 12, dtype=torch.int64))
    assert bank.pixels.shape == (3, 5000, 4)


def test_classes_beyond_the_dtype_of_the_labels():
    emb, labels = torch.randn(1, 4, 6), torch.tensor([[0, 200, 255, 44, 44, 200]])
    bank = MemoryBank(300, 4, region_slots=0, ignore_index=-100)
    bank.update(emb, labels.to(torch.uint8))
    assert [int(bank.pixel_count[label]) for label in (0, 44, 200, 255)] == [1, 2, 2, 1]
    with pytest.raises(ValueError, match=r"below num_classes = 255 .* got 255"):
        MemoryBank(255, 4, ignore_index=511).update(emb, labels.to(torch.uint8))


def test_classes_that_a_bank_has_not_are_ignored_where_nobody_looks(monkeypatch):
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    bank = MemoryBank(3, 4)
    emb, labels = torch.randn(1, 4, 5), torch.tensor([[0, 3, 4, 2, 3]])
    bank.update(emb, labels)
    loss, sample = PixelContrastLoss(bank=bank)(emb, labels, return_anchors=True)
    assert bank.pixel_count.tolist() == [2, 0, 2]
    assert sample.labels.tolist() == [0, 2, IGNORE, IGNORE, IGNORE]
    assert torch.isfinite(loss)


def test_entries_are_a_view_and_unwritten_slots_are_ignored():
    bank = MemoryBank(3, 4, pixel_slots=7, region_slots=2, pixels_per_image=2)
    emb, labels = scene()
    labels[labels == 1] = 0
    bank.update(emb, labels)
    entries, entry_labels = bank.entries("pixels")
    assert entries.data_ptr() == bank.pixels.data_ptr()
    assert entries.shape == (21, 4)
    assert entry_labels.tolist() == [0] * 6 + [IGNORE] * 8 + [2] * 6 + [IGNORE]
    assert bank.entries("regions")[1].tolist() == [0, 0, IGNORE, IGNORE, 2, 2]
    with pytest.raises(ValueError, match="queue: expected one of 'pixels', 'regions'; got 'both'"):
        bank.entries("both")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0])
def test_bad_pixels_never_enter(bad):
    bank = MemoryBank(2, 4, pixel_slots=50, region_slots=5, pixels_per_image=30)
    emb, labels = scene(images=2, classes=2)
    emb[0, :, 0] = bad
    if bad != 0.0:
        emb[1, 2, 3, 3] = bad
    bank.update(emb, labels)
    good = torch.isfinite(emb).all(dim=1) & (emb != 0).any(dim=1)
    for label in range(2):
        assert int(bank.pixel_count[label]) == int((good & (labels == label)).sum())
        for image in range(2):
            member = good[image] & (labels[image] == label)
            expected = F.normalize(F.normalize(emb[image][:, member], dim=0).mean(1), dim=0)
            torch.testing.assert_close(bank.regions[label, image], expected)
    assert torch.isfinite(bank.pixels).all()
    bank.update(torch.full_like(emb, bad), labels)
    assert bank.region_count.tolist() == [2, 2]


def test_directions_that_cancel_are_no_region():
    emb = torch.tensor([[[1.0, -1.0], [0.0, 0.0]]])
    bank = MemoryBank(1, 2)
    bank.update(emb, torch.zeros(1, 2, dtype=torch.int64))
    assert bank.region_count.tolist() == [0]
    assert bank.pixel_count.tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("emb_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype, emb_dtype):
    bank = MemoryBank(3, 4, dtype=dtype)
    emb, labels = scene()
    bank.update(emb.to(emb_dtype) * 100, labels)
    stored = bank.entries("pixels")[0][bank.entries("pixels")[1] != IGNORE]
    assert stored.dtype == dtype
    torch.testing.assert_close(stored.double().norm(dim=1), torch.ones(len(stored)).double(),
                               rtol=0, atol=0.01)  # fmt: skip


@pytest.mark.parametrize("size", [(30,), (6, 5), (3, 2, 5), None])
def test_any_number_of_dimensions(size):
    emb, labels = scene(images=1)
    expected = MemoryBank(3, 4)
    expected.update(emb, labels, generator=torch.Generator().manual_seed(1))
    bank = MemoryBank(3, 4)
    if size is None:
        emb, labels = emb.flatten(2)[0].T, labels.flatten()
    else:
        emb, labels = emb.view(1, 4, *size), labels.view(1, *size)
    bank.update(emb, labels, generator=torch.Generator().manual_seed(1))
    for name, value in bank.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])


def test_labels_are_resized():
    emb, labels = scene()
    bank, expected = MemoryBank(3, 4, pixel_slots=0), MemoryBank(3, 4, pixel_slots=0)
    bank.update(emb, labels.repeat_interleave(3, 1).repeat_interleave(2, 2))
    expected.update(emb, labels)
    assert torch.equal(bank.regions, expected.regions)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
def test_nothing_changes_nothing(shape):
    bank = MemoryBank(3, 4)
    bank.update(torch.zeros(shape), torch.zeros(shape[0], *shape[2:], dtype=torch.int64))
    bank.update(*[x if x.ndim == 4 else torch.full_like(x, IGNORE) for x in scene()])
    assert bank.pixel_count.sum() == bank.region_count.sum() == 0


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"pixel_slots": 0}, {"regions"}),
        ({"region_slots": 0}, {"pixels"}),
        ({"pixels_per_image": 0}, {"regions"}),
        ({"pixel_slots": 0, "region_slots": 0}, set()),
    ],
)
def test_a_queue_may_be_left_out(options, left):
    bank = MemoryBank(3, 4, **options)
    bank.update(*scene())
    for queue in ("pixels", "regions"):
        entries, labels = bank.entries(queue)
        assert (len(entries) > 0) == (queue in left)
        assert bool((labels != IGNORE).any()) == (queue in left)
    assert PixelContrastLoss(bank=bank).contrast_with == (
        "batch", *(q for q in ("pixels", "regions") if q in left)
    )  # fmt: skip


def test_state_dict_round_trips():
    bank = MemoryBank(3, 4, pixel_slots=5, region_slots=2, dtype=torch.bfloat16)
    for seed in range(3):
        bank.update(*scene(seed))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = MemoryBank(3, 4, pixel_slots=5, region_slots=2, dtype=torch.bfloat16)
    other.load_state_dict(torch.load(file, weights_only=True))
    for bank_ in (bank, other):
        bank_.update(*scene(9), generator=torch.Generator().manual_seed(2))
    assert len(bank.state_dict()) == 6
    for name, value in bank.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_shape_is_refused_with_both_shapes():
    state = MemoryBank(3, 4, pixel_slots=5).state_dict()
    with pytest.raises(RuntimeError, match=r"pixels.*\[3, 6, 4\].*\[3, 5, 4\]"):
        MemoryBank(3, 4, pixel_slots=6).load_state_dict(state)


def test_copies_and_pickles():
    bank = MemoryBank(3, 4)
    loss = PixelContrastLoss(bank=bank)
    emb, labels = scene()
    loss(emb, labels)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other.bank.pixels, bank.pixels)
        other(emb, labels)  # of its own bank, and so no warning
        assert int(other.bank.region_count[0]) == 6
        assert int(bank.region_count[0]) == 3


def test_a_second_updater_warns_once():
    bank = MemoryBank(3, 4)
    pixels, regions = PixelContrastLoss(bank=bank), RegionContrastLoss(bank=bank)
    pixels(*scene())
    with pytest.warns(UserWarning, match="two losses update the same MemoryBank") as warned:
        regions(*scene())
    assert warned[0].filename == __file__, "it points at the call of the loss"
    regions(*scene())
    pixels(*scene())
    bank = MemoryBank(3, 4)
    for _ in range(2):  # one after the other is gone
        PixelContrastLoss(bank=bank)(*scene())
    RegionContrastLoss(bank=bank, update_bank=False)(*scene())


def test_a_sharded_bank_of_one_process_is_a_whole_one():
    banks = [MemoryBank(3, 4, pixel_slots=5, region_slots=2, sharded=s) for s in (False, True)]
    losses = [PixelContrastLoss(bank=bank) for bank in banks]
    emb, labels = scene()
    for _ in range(2):
        generators = (torch.Generator().manual_seed(1) for _ in losses)
        values = [
            loss(emb, labels, generator=g) for loss, g in zip(losses, generators, strict=True)
        ]
        assert torch.equal(*values)
    whole, sharded = (bank.state_dict() for bank in banks)
    assert sharded.pop("shard").tolist() == [0, 1]
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    assert [bank.is_spread for bank in banks] == [False, False]


def test_a_bank_says_what_it_is():
    options = (
        "3, 4, pixel_slots=5, region_slots=2, pixels_per_image=10, pixels_per_region=None, "
        "ignore_index=255"
    )
    for sharded, end in ((False, ""), (True, ", shard 0 of 1")):
        bank = MemoryBank(3, 4, pixel_slots=5, region_slots=2, sharded=sharded)
        assert repr(bank) == f"MemoryBank({options}, dtype=torch.float32{end})"


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("who", ["loss", "caller"])
def test_a_checkpointed_update_raises(use_reentrant, who):
    bank = MemoryBank(3, 4)
    loss = PixelContrastLoss(bank=bank, update_bank=who == "loss")
    emb, labels = scene()
    emb.requires_grad_()

    def region(emb):
        if who == "caller":
            bank.update(emb, labels)
        return loss(emb * 2, labels)

    value = checkpoint(region, emb, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="during a backward pass"):
        value.backward()


def test_the_generator_decides():
    banks = [MemoryBank(3, 4, pixels_per_image=2) for _ in range(3)]
    for bank, seed in zip(banks, (1, 1, 2), strict=True):
        bank.update(*scene(), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(banks[0].pixels, banks[1].pixels)
    assert not torch.equal(banks[0].pixels, banks[2].pixels)


def test_the_losss_generator_decides():
    banks = [MemoryBank(3, 4, pixels_per_image=2) for _ in range(3)]
    for bank, seed in zip(banks, (1, 1, 2), strict=True):
        PixelContrastLoss(bank=bank)(*scene(), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(banks[0].pixels, banks[1].pixels)
    assert not torch.equal(banks[0].pixels, banks[2].pixels)


def test_arguments_are_not_changed_and_no_graph_is_kept():
    emb, labels = scene()
    emb.requires_grad_()
    before = emb.detach().clone(), labels.clone()
    bank = MemoryBank(3, 4)
    bank.update(emb, labels)
    assert torch.equal(emb, before[0])
    assert torch.equal(labels, before[1])
    assert not bank.pixels.requires_grad
    assert not bank.regions.requires_grad


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("way", ["to_empty", "reset_parameters"])
def test_deferred_initialization_makes_an_empty_bank(persistent, way):
    with torch.device("meta"):
        loss = PixelContrastLoss(
            bank=MemoryBank(3, 8, persistent=persistent), contrast_with=("pixels", "regions")
        )
    loss.to_empty(device="cpu")
    if way == "reset_parameters":
        for buffer in loss.bank.buffers():
            buffer.fill_(7)
        loss.bank.reset_parameters()
    assert not any(buffer.any() for buffer in loss.bank.buffers())
    labels = torch.randint(0, 3, (2, 6, 6))
    assert float(loss(torch.randn(2, 8, 6, 6), labels)) == 0
    assert loss.bank.get_buffer("pixels") is loss.bank.pixels


def test_autocast_does_not_round_what_is_stored():
    emb, labels = scene()
    banks = MemoryBank(3, 4), MemoryBank(3, 4)
    banks[0].update(emb, labels, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        banks[1].update(emb, labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(banks[0].regions, banks[1].regions)
    assert torch.equal(banks[0].pixels, banks[1].pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1e-45, 1e-35, 1e-23, 1e25])
def test_one_rule_says_what_is_zero(dtype, length):
    emb = torch.tensor([[[2.0, 0.5], [1.0, -0.5]]], dtype=dtype)
    emb[..., 0] *= length
    bank = MemoryBank(1, 2, dtype=torch.float64)
    bank.update(emb, torch.zeros(1, 2, dtype=torch.int64))
    expected = 2 if length > 1e-30 else 1
    assert int(bank.pixel_count[0]) == expected
    stored = bank.pixels[0, :expected]
    torch.testing.assert_close(stored.norm(dim=1), torch.ones(expected).double(), rtol=1e-6, atol=0)
    unit = F.normalize(torch.tensor([[2.0, 1.0], [0.5, -0.5]]).double(), dim=1)
    mean = F.normalize(unit[2 - expected :].mean(0), dim=0)
    torch.testing.assert_close(bank.regions[0, 0], mean, rtol=1e-6, atol=0)


def test_many_directions_that_cancel_are_no_region():
    half = torch.randn(8, 20_000)
    emb = torch.cat([half, -half], dim=1)[:, torch.randperm(40_000)][None]
    bank = MemoryBank(1, 8, pixel_slots=0)
    bank.update(emb, torch.zeros(1, 40_000, dtype=torch.int64))
    assert bank.region_count.tolist() == [0]
