"""What a loss keeps of a call, and the warnings it gives once."""

import copy
import io
import pickle
import warnings

import pytest
import torch

from pixcontrast import MemoryBank, PixelContrastLoss, ProjectionHead, RegionContrastLoss

each_loss = pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
EMB = torch.randn(2, 8, 6, 6)


def mask_of(low, high):
    mask = torch.full((2, 6, 6), low)
    mask[:, 3:] = high
    return mask


def told(loss, calls, *arguments):
    """The number of the call of each warning, and its words."""
    found = []
    for number in range(calls):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss(*arguments)
        found += [(number, str(one.message), one.filename) for one in caught]
    return found


@each_loss
@pytest.mark.parametrize("with_bank", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("mask", [mask_of(0, 255), mask_of(255, 255)], ids=["one class", "none"])
@pytest.mark.parametrize("spatial", [(), (36,), (6, 6), (2, 3, 6)], ids=str)
def test_masks_of_0_and_255(kind, with_bank, training, mask, spatial):
    loss = kind(bank=MemoryBank(2, 8) if with_bank else None).train(training)
    emb, mask = EMB.flatten(2), mask.flatten(1)
    maps = (emb.unflatten(2, spatial), mask.unflatten(1, spatial)) if spatial else ()
    ((number, words, filename),) = told(loss, 25, *(maps or (emb[0].T, mask[0])))
    assert number == 9
    assert "mask > 0" in words
    assert filename == __file__


def test_a_negative_ends_the_row():
    loss = PixelContrastLoss()
    for _ in range(3):
        assert not told(loss, 9, EMB, mask_of(0, 255))
        assert not told(loss, 1, EMB, mask_of(0, 1))


@pytest.mark.parametrize(
    ("stored", "mask", "options"),
    [
        (None, mask_of(0, 255), {"denominator": "all"}),
        (1, mask_of(0, 255), {}),
        (0, mask_of(0, 1), {"contrast_with": ("pixels",)}),
        (1, mask_of(0, 1), {"contrast_with": ("pixels",)}),
        (None, mask_of(0, 255)[:0], {}),
    ],
    ids=["supcon", "another class", "the lower class", "the higher class", "no image"],
)
def test_no_warning_where_the_loss_is_not_constant(stored, mask, options):
    if stored is not None:
        bank = MemoryBank(2, 8, pixel_slots=40)
        bank.update(EMB, mask_of(stored, stored))
        options = {"bank": bank, "update_bank": False, **options}
    assert not told(PixelContrastLoss(**options), 12, EMB[: len(mask)], mask)


@each_loss
@pytest.mark.parametrize("with_bank", [False, True])
def test_255_as_a_class(kind, with_bank):
    loss = kind(bank=MemoryBank(300, 8, pixel_slots=4, region_slots=4) if with_bank else None)
    logits = torch.randn(2, 300, 6, 6)
    ((number, words, filename),) = told(loss, 3, EMB, mask_of(254, 255), logits)
    assert number == 0
    assert "300 classes" in words
    assert filename == __file__
    assert told(kind(), 1, EMB, mask_of(254, 255), logits[:, :256])
    assert not told(kind(ignore_index=-1), 3, EMB, mask_of(254, 255), logits)
    assert not told(kind(), 3, EMB, mask_of(254, 253), logits[:, :255])


def test_no_warning_from_a_compiled_loss():
    loss = torch.compile(PixelContrastLoss(), backend="eager", fullgraph=True)
    assert not told(loss, 2, EMB, mask_of(253, 254), torch.randn(2, 300, 6, 6))


@each_loss
@pytest.mark.parametrize("with_bank", [False, True])
def test_nothing_of_a_call_is_in_copies_and_pickles(kind, with_bank):
    loss = kind(
        bank=MemoryBank(2, 4) if with_bank else None,
        projection=ProjectionHead(8, 4) if with_bank else None,
    )
    empty = len(pickle.dumps(loss))
    loss(EMB, mask_of(0, 1))
    assert len(pickle.dumps(loss)) == empty
    assert copy.deepcopy(loss).stats is None
    assert loss.stats is not None
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded(EMB, mask_of(0, 1)) > 0
    assert int(loaded.stats.classes) == 2


@each_loss
@pytest.mark.parametrize("with_bank", [False, True])
def test_to_moves_what_stats_are_made_of(kind, with_bank):
    loss = kind(bank=MemoryBank(2, 8) if with_bank else None)
    loss(EMB, mask_of(0, 1))
    assert {value.device.type for value in loss.to("meta").stats} == {"meta"}


@pytest.mark.parametrize("classes", [(0, 1), (0, 0)])
def test_images_of_one_class_each_have_no_negative(classes):
    """Under `"image"`, anchors of other images are not entries."""
    mask = torch.tensor(classes)[:, None, None].expand(2, 6, 6)
    loss = PixelContrastLoss(contrast_with=("image",))
    ((number, words, _),) = told(loss, 12, EMB, mask)
    assert number == 9
    assert "no anchor had a negative" in words
    assert not told(PixelContrastLoss(contrast_with=("image",)), 12, EMB, mask_of(0, 1))


@pytest.mark.parametrize("size", [(6, 6), (12, 12), (3, 3)], ids=str)
def test_a_pixel_of_weight_0_may_have_any_label(size):
    labels = mask_of(0, 1)
    labels[:, :2] = 99
    weight = (labels != 99).float()[:, None]
    weight = torch.nn.functional.interpolate(weight, size, mode="nearest")[:, 0]
    loss = PixelContrastLoss(bank=MemoryBank(2, 8))
    expected = PixelContrastLoss(bank=MemoryBank(2, 8))
    marked = labels.masked_fill(labels == 99, 255)
    results = [
        of(EMB, names, weight=weight, generator=torch.Generator().manual_seed(0))
        for of, names in ((loss, labels), (expected, marked))
    ]
    assert torch.equal(*results)
    assert torch.equal(loss.bank.pixels, expected.bank.pixels)
    with pytest.raises(ValueError, match="labels: expected classes below num_classes = 2"):
        loss(EMB, labels, weight=torch.ones(2, 6, 6))
