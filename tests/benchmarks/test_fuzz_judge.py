"""The judge of the random calls, judged: each rule of it sees what is broken on purpose."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from benchmarks.reliability import perform
from benchmarks.reliability.calls import Call, make_call
from benchmarks.reliability.judge import defect_of
from benchmarks.reliability.perform import placed
from pixcontrast import (
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast._loss import base
from pixcontrast.functional import info_nce

LABELS = torch.tensor([0, 0, 1, 1])


class Steeper(torch.autograd.Function):
    """The same value; a gradient that is off by a tenth."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return 1.1 * upstream


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape), dim=1)


def judged_info_nce(function, mining, **given):
    arguments = {
        "anchors": unit(12, 3), "anchor_labels": torch.arange(12) % 3, "contrast": [None],
        "contrast_labels": [None], "temperature": 0.5, "denominator": "negatives",
        "weight": None, "negative_sampler": mining, "generator": torch.Generator().manual_seed(3),
        "reduction": "mean", "ignore_index": 255, "backend": "tiled",
    }  # fmt: skip
    return defect_of(Call("info_nce", function, {"call": {**arguments, **given}}))[1]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("strategy", ["hardest", "semi-hard", "random"])
def test_a_wrong_selection(strategy, reduction):
    def select(negatives, positives):
        return HardNegativeSampler(
            strategy=strategy, ratio=0.5, num_negatives=negatives, num_positives=positives
        )

    def judged(negatives, positives):
        other = select(negatives, positives)
        return judged_info_nce(
            lambda **given: info_nce(**{**given, "negative_sampler": other}), select(2, 1),
            reduction=reduction,
        )  # fmt: skip

    assert judged(2, 1) is None
    assert "off by" in judged(3, 1)
    assert "off by" in judged(2, 2)


def test_a_selection_that_draws_by_another_seed():
    mining = HardNegativeSampler(strategy="random", num_negatives=2, num_positives=1)

    def draws_again(**given):
        given["generator"].manual_seed(4)
        return info_nce(**given)

    assert judged_info_nce(info_nce, mining) is None
    assert "off by" in judged_info_nce(draws_again, mining)


def test_what_rounding_decides_is_not_compared():
    """Equal vectors tie, and which of them count is a matter of rounding."""
    mining = HardNegativeSampler(strategy="hardest", num_negatives=2, num_positives=1)
    anchors = torch.ones(12, 3)
    assert judged_info_nce(lambda **given: 2 * info_nce(**given), mining, anchors=anchors) is None
    assert "NaN" in judged_info_nce(
        lambda **given: torch.nan * info_nce(**given), mining, anchors=anchors
    )


def test_a_wrong_gradient_under_mining_and_of_an_entry():
    mining = HardNegativeSampler(strategy="hardest", num_negatives=2, num_positives=1)

    def wrong(**given):
        return Steeper.apply(info_nce(**given))

    anchors = unit(12, 3).requires_grad_()
    assert judged_info_nce(info_nce, mining, anchors=anchors) is None
    assert "gradient of anchors" in judged_info_nce(wrong, mining, anchors=anchors)
    entries = {"contrast": [None, unit(9, 3).requires_grad_()],
               "contrast_labels": [None, torch.arange(9) % 3]}  # fmt: skip
    assert judged_info_nce(info_nce, None, **entries) is None
    assert "gradient of contrast[1]" in judged_info_nce(wrong, None, **entries)


class AsItIs:
    """What changes nothing."""


def judged_loss(kind, mixed_in=AsItIs, bank=False, *, call=None, head=None, **options):
    """The verdict on a loss of which a part is replaced by that of `mixed_in`."""

    class Broken(mixed_in, kind):
        pass

    torch.manual_seed(0)
    memory = {"num_classes": 3, "dim": 3, "ignore_index": 255, "pixel_slots": 9, "region_slots": 5,
              "pixels_per_image": 2}  # fmt: skip
    fill = {"emb": torch.randn(2, 3, 4, 4), "labels": torch.randint(0, 3, (2, 4, 4))}
    arguments = {
        "emb": torch.randn(2, 3, 4, 4).requires_grad_(), "labels": torch.randint(0, 3, (2, 8, 8)),
        "preds": None, "weight": None, "generator": None, "return_anchors": True,
    }  # fmt: skip
    given = {
        "loss": {"anchor_sampler": RandomAnchorSampler(max_anchors=20), **options},
        "call": {**arguments, **(call or {})},
        **({"bank": memory} if bank else {}),
        **({"head": {"in_channels": 3, "dim": 3, **head}} if head else {}),
    }
    return defect_of(Call("loss", Broken, given, (fill,)))[1]


KINDS = pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
WEIGHT = {"weight": torch.arange(1.0, 33.0).view(2, 4, 4)}


HEADS = {
    "no head": None,
    "linear": {"kind": "linear", "norm": None},
    "layer": {"kind": "mlp", "norm": "layer"},
}


@KINDS
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_what_a_loss_gets_wrong(kind, bank, head):
    class Forgets:
        def forward(self, *arguments, **given):
            return super().forward(*arguments, **{**given, "weight": None})

    class Moves:
        def _embed(self, batch, *arguments):
            flipped = replace(batch, features=batch.features.flip(2))
            return super()._embed(flipped, *arguments)

    class Slopes:
        def forward(self, *arguments, **given):
            loss, sample = super().forward(*arguments, **given)
            return Steeper.apply(loss), sample

    class Alone:
        def forward(self, *arguments, **given):
            answer = super().forward(*arguments, **given)
            return answer if given["return_anchors"] else 1.001 * answer

    for call in ({}, WEIGHT, {"return_anchors": False}):
        assert judged_loss(kind, bank=bank, call=call, head=head) is None
    assert "off by" in judged_loss(kind, Forgets, bank, call=WEIGHT, head=head)
    assert "other pixels" in judged_loss(kind, Moves, bank, head=head)
    double = {"emb": torch.randn(2, 3, 4, 4, dtype=torch.float64).requires_grad_()}
    assert judged_loss(kind, bank=bank, call=double, head=head) is None
    assert "the gradient of emb" in judged_loss(kind, Slopes, bank, call=double, head=head)
    alone = judged_loss(kind, Alone, bank, call={"return_anchors": False}, head=head)
    assert "return_anchors" in alone


def test_contrast_with_other_images():
    class OfBatch:
        def _contrast(self, *arguments):
            with patch.object(base, "split_by_image", lambda problem, *_: [problem]):
                return super()._contrast(*arguments)

    options = {"contrast_with": ("image",)}
    assert judged_loss(PixelContrastLoss, **options) is None
    assert "off by" in judged_loss(PixelContrastLoss, OfBatch, **options)


@KINDS
def test_a_bank_that_takes_in_what_it_must_not(kind):
    class Ignored:
        """Pixels of weight 0 are stored as class 0."""

        def _draw_for_bank(self, batch, *arguments):
            batch = replace(batch, labels=batch.labels.clamp(min=0))
            return super()._draw_for_bank(batch, *arguments)

    class Always:
        def _bank_to_update(self):
            return self.bank

    labels = torch.arange(64).view(1, 8, 8).expand(2, 8, 8) % 3
    call = {"labels": labels, "weight": (labels > 0).float()}
    assert judged_loss(kind, bank=True, call=call) is None
    assert "the bank holds another class" in judged_loss(kind, Ignored, True, call=call)
    assert judged_loss(kind, bank=True, update_bank=False) is None
    assert "was updated" in judged_loss(kind, Always, True, update_bank=False)


@pytest.mark.parametrize("bank", [False, True])
def test_regions_of_other_pixels(bank):
    class OfPart:
        """Regions that lack the last row of the map."""

        def _batch_entries(self, batch, new_entries):
            first = torch.arange(batch.labels.shape[1]) < 12
            labels = batch.labels.masked_fill(~first, -1)
            return super()._batch_entries(replace(batch, labels=labels), None)

    class Missing:
        def _batch_entries(self, batch, new_entries):
            made = super()._batch_entries(batch, new_entries)
            return made._replace(labels=made.labels.masked_fill(made.labels == 0, -1))

    assert "off by" in judged_loss(RegionContrastLoss, OfPart, bank)
    assert "off by" in judged_loss(RegionContrastLoss, Missing, bank)


def test_a_loss_that_samples_by_another_rule():
    class Wrong(RandomAnchorSampler):
        def __call__(self, labels, preds=None, **given):
            given["generator"] = None
            return super().__call__(labels, preds, **given)

    given = {"generator": torch.Generator().manual_seed(5)}
    assert judged_loss(PixelContrastLoss, call=given) is None
    sampler = Wrong(max_anchors=20)
    assert "another sample" in judged_loss(PixelContrastLoss, anchor_sampler=sampler, call=given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bank: None, None),
        (lambda bank: bank.pixel_count.fill_(-1), "out of its range"),
        (lambda bank: bank.region_count.fill_(99), "out of its range"),
        (lambda bank: bank.regions.mul_(1.1), "not of unit length"),
    ],
)
def test_a_bank_that_breaks_its_rules(change, words):
    class Broken(MemoryBank):
        def update(self, *arguments, **options):
            super().update(*arguments, **options)
            change(self)

    given = {
        "bank": {"num_classes": 2, "dim": 3, "region_slots": 20},
        "call": {"emb": torch.randn(1, 3, 4), "labels": LABELS[None], "generator": None},
        "queue": {"queue": "pixels"},
    }
    with patch.object(perform, "MemoryBank", Broken):
        _, wrong = defect_of(Call("bank.update", Broken, given))
    assert wrong is None if words is None else words in wrong


def test_a_wrong_sample():
    given = {"labels": LABELS[None], "preds": None, "ignore_index": 255, "generator": None}

    class Wrong(RandomAnchorSampler):
        def __call__(self, *arguments, **options):
            sample = super().__call__(*arguments, **options)
            return sample._replace(indices=torch.zeros_like(sample.indices))

    class Uncapped(RandomAnchorSampler):
        def __call__(self, *arguments, **options):
            return RandomAnchorSampler(max_anchors=4)(*arguments, **options)

    def judged(kind):
        given_to = {"sampler": {"max_anchors": 4, "max_per_class": 1}, "call": given}
        return defect_of(Call("sampler", kind, given_to))[1]

    assert judged(RandomAnchorSampler) is None
    assert "a pixel twice" in judged(Wrong)
    assert "too many anchors" in judged(Uncapped)


def test_a_call_put_onto_another_backend():
    made = [placed(make_call(number), "dense", "cpu") for number in range(200)]
    fitting = [call for call in made if call is not None]
    assert {call.target for call in fitting} == {"info_nce", "loss"}
    for call in fitting:
        is_loss = call.target == "loss"
        assert call.given["loss" if is_loss else "call"]["backend"] == "dense"
        vectors = call.given["call"]["emb" if is_loss else "anchors"]
        assert not isinstance(vectors, torch.Tensor) or vectors.dtype != torch.float64


def test_a_call_put_onto_another_device():
    """Rehearsed where there is none: there and back again, with its gradient."""
    seen = 0
    for number in range(120):
        call = placed(make_call(number), "tiled", "cpu:0")
        if call is not None:
            seen += 1
            assert defect_of(call) == ("value", None), number
    assert seen > 5
