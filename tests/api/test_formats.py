"""Formats of labels, predictions and weights that loaders give, and tensors of subclasses."""

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map_only

from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast._check import plain
from pixcontrast.functional import info_nce

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
SPATIAL = [(), (9,), (5, 6), (3, 2, 4)]
each_loss = pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
each_bank = pytest.mark.parametrize(
    "with_bank", [False, True, "eval"], ids=["alone", "bank", "eval"]
)


class Wrapped(torch.Tensor):
    """A subclass that keeps its type in every operation, like MONAI's MetaTensor."""


class Unwrapped(torch.Tensor):
    """A subclass that loses its type in every operation, like torchvision's tv_tensors."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class Case:
    """One batch, and the loss, gradient and bank that it gives in a format."""

    def __init__(self, kind, with_bank, spatial=(5, 6), classes=3):
        shape = (2, *spatial) if spatial else (30,)
        self.kind, self.with_bank, self.classes = kind, with_bank, classes
        self.emb = torch.randn(shape[0], 8, *spatial)
        self.labels = torch.randint(0, classes, shape)
        self.preds = torch.randint(0, classes, shape)
        self.weight = torch.randint(0, 2, shape)

    def results(self, labels=None, preds=None, weight=None, emb=None):
        bank = MemoryBank(self.classes, 8, pixel_slots=9, region_slots=5)
        loss = self.kind(bank=bank if self.with_bank else None).train(self.with_bank != "eval")
        emb = (self.emb if emb is None else emb).detach().clone().requires_grad_()
        options = {"weight": weight, "generator": torch.Generator().manual_seed(0)}
        value = loss(emb, self.labels if labels is None else labels, preds, **options)
        value.backward()
        return [value.detach(), emb.grad, *bank.state_dict().values()]


def same(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(plain(one), plain(other))


@each_loss
@each_bank
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_a_channel_of_one_is_no_dimension(kind, with_bank, spatial):
    case = Case(kind, with_bank, spatial)
    expected = case.results(case.labels, case.preds, case.weight)
    same(case.results(*(x[:, None] for x in (case.labels, case.preds, case.weight))), expected)


@each_loss
@each_bank
@pytest.mark.parametrize("dtype", INTEGERS + UNSIGNED, ids=str)
def test_every_integer_dtype(kind, with_bank, dtype):
    case = Case(kind, with_bank)
    expected = case.results(case.labels, case.preds, case.weight)
    found = case.results(*(x.to(dtype) for x in (case.labels, case.preds, case.weight)))
    same(found, expected)


def test_labels_that_fit_both_ways_are_channels_first():
    emb, labels = torch.randn(2, 6, 6, 6), torch.randint(0, 3, (2, 6, 6))
    assert PixelContrastLoss()(emb, labels) > 0


@pytest.mark.parametrize("dtype", UNSIGNED, ids=str)
def test_the_largest_unsigned_numbers_are_ignored_or_refused(dtype):
    case = Case(PixelContrastLoss, with_bank=True)
    marked = case.labels.masked_fill(case.weight == 0, 255)
    same(case.results(marked.to(dtype)), case.results(marked))
    if dtype != torch.uint64:  # beyond 2 ** 63 a label is negative, and ignored
        wrong = case.labels.to(dtype)
        wrong[0, 0, 0] = torch.iinfo(dtype).max
        with pytest.raises(ValueError, match=f"got {torch.iinfo(dtype).max}"):
            case.results(wrong)


@each_loss
@each_bank
def test_bool_is_class_0_and_1(kind, with_bank):
    case = Case(kind, with_bank, classes=2)
    expected = case.results(case.labels, case.preds, case.weight)
    same(case.results(*(x.bool() for x in (case.labels, case.preds, case.weight))), expected)
    mask = (case.labels.bool()[:, None], case.preds.bool()[:, None])
    same(case.results(*mask), case.results(case.labels, case.preds))


@each_loss
@each_bank
@pytest.mark.parametrize("subclass", [Wrapped, Unwrapped, torch.nn.Parameter])
@pytest.mark.parametrize("arguments", [("labels",), ("emb",), ("labels", "preds", "weight", "emb")])
@pytest.mark.parametrize("spatial", [(), (5, 6), (3, 2, 4)], ids=str)
def test_a_subclass_is_the_tensor_that_it_is(kind, with_bank, subclass, arguments, spatial):
    case = Case(kind, with_bank, spatial)
    plain_ones = {"labels": case.labels, "preds": case.preds, "emb": case.emb}
    plain_ones["weight"] = case.weight.float()
    if subclass is torch.nn.Parameter:  # of floats alone
        arguments = [name for name in arguments if name in ("emb", "weight")]
        changed = {name: torch.nn.Parameter(plain_ones[name]) for name in arguments}
    else:
        changed = {name: plain_ones[name].as_subclass(subclass) for name in arguments}
    found = case.results(**{**plain_ones, **changed})
    assert type(found[0]) is torch.Tensor
    same(found, case.results(**plain_ones))


@pytest.mark.parametrize("subclass", [Wrapped, Unwrapped])
def test_subclasses_in_the_other_calls(subclass):
    emb, labels = torch.randn(2, 8, 5, 6), torch.randint(0, 3, (2, 5, 6))
    head = ProjectionHead(8, 4)
    assert type(head(emb.as_subclass(subclass))) is torch.Tensor
    banks = [MemoryBank(3, 8, pixel_slots=4, region_slots=4) for _ in range(2)]
    for bank, kind in zip(banks, (torch.Tensor, subclass), strict=True):
        generator = torch.Generator().manual_seed(0)
        bank.update(emb.as_subclass(kind), labels.as_subclass(kind), generator=generator)
        assert all(type(buffer) is torch.Tensor for buffer in bank.buffers())
    same(banks[0].buffers(), banks[1].buffers())
    for sampler in (HardAnchorSampler(), RandomAnchorSampler()):
        flat = labels.flatten(1).as_subclass(subclass)
        sample = sampler(flat, flat, generator=torch.Generator().manual_seed(0))
        assert type(sample.indices) is type(sample.labels) is torch.Tensor
    rows, names, weight = emb[0].flatten(1).T, labels[0].flatten(), torch.rand(30)
    given = rows, names, [None, rows.flip(0)], [None, names.flip(0)], weight
    changed = tree_map_only(torch.Tensor, lambda tensor: tensor.as_subclass(subclass), given)
    same(*([info_nce(*each[:4], weight=each[4])] for each in (given, changed)))
    projected = PixelContrastLoss(projection=head)
    results = (
        projected(*each, generator=torch.Generator().manual_seed(0))
        for each in ((emb, labels), (emb.as_subclass(subclass), labels.as_subclass(subclass)))
    )
    same(*([result] for result in results))


@pytest.mark.parametrize("subclass", [Wrapped, Unwrapped])
def test_a_subclass_gives_its_gradient(subclass):
    leaf = torch.randn(3, 4, requires_grad=True)
    plain(leaf.as_subclass(subclass)).sum().backward()
    assert torch.equal(leaf.grad, torch.ones(3, 4))


def test_what_implements_operators_itself_stays():
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    assert type(fake) is FakeTensor
    assert plain(fake) is fake


@pytest.mark.parametrize("dtype", [*UNSIGNED, torch.bool], ids=str)
def test_samplers_and_updates_take_every_dtype(dtype):
    labels = torch.randint(0, 2, (2, 30))
    for sampler in (HardAnchorSampler(max_anchors=8), RandomAnchorSampler(max_anchors=8)):
        expected, found = (
            sampler(x, preds, generator=torch.Generator().manual_seed(0))
            for x, preds in ((labels, labels.flip(1)), (labels.to(dtype), labels.flip(1).to(dtype)))
        )
        same(found, expected)
    bank = MemoryBank(2, 4, pixel_slots=99)
    bank.update(torch.randn(2, 4, 30), labels[:, None].to(dtype))
    assert bank.region_count.tolist() == [2, 2]


def test_numbers_of_numpy():
    bank = MemoryBank(np.int64(2), np.int32(4), pixel_slots=np.uint8(3), ignore_index=np.int16(-1))
    sampler = HardAnchorSampler(max_anchors=np.int64(8), hard_fraction=np.float32(0.5))
    mining = HardNegativeSampler(ratio=np.float64(0.5), num_negatives=np.int64(3))
    loss = PixelContrastLoss(
        temperature=np.float32(0.5),
        ignore_index=np.int64(-1),
        bank=bank,
        anchor_sampler=sampler,
        negative_sampler=mining,
    )
    emb, labels = torch.randn(2, 4, 9), torch.randint(0, 2, (2, 9))
    assert torch.isfinite(loss(emb, labels))
    assert ProjectionHead(np.int64(4), np.int64(2))(emb).shape == (2, 2, 9)
    for number in (bank.num_classes, bank.dim, bank.ignore_index, sampler.max_anchors):
        assert type(number) is int
    assert type(mining.num_negatives) is int


@each_loss
@each_bank
@pytest.mark.parametrize("spatial", SPATIAL, ids=str)
def test_weight_0_is_out(kind, with_bank, spatial):
    """As if the label were ignored; the other weights are 1, and so do not count."""
    case = Case(kind, with_bank, spatial)
    ignored = case.labels.masked_fill(case.weight == 0, 255)
    for weight in (case.weight, case.weight.bool(), case.weight.double()):
        same(case.results(weight=weight), case.results(ignored))
    nothing = case.results(weight=torch.zeros_like(case.weight))
    assert not any(tensor.any() for tensor in nothing)


@each_loss
def test_an_ignored_class_has_empty_rings(kind):
    emb, labels = torch.randn(2, 8, 5, 6, requires_grad=True), torch.randint(0, 3, (2, 5, 6))
    bank = MemoryBank(3, 8, ignore_index=0)
    kind(bank=bank, ignore_index=0)(emb, labels).backward()
    assert (bank.pixel_count > 0).tolist() == [False, True, True]
    assert bank.region_count.tolist() == [0, 2, 2]
    vectors, marked = bank.entries("regions")
    assert (marked != 0).sum() == 4
    assert vectors.shape[0] == marked.shape[0]
