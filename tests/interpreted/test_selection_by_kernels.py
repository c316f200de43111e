"""Thresholds selected by kernels equal those of the rule on the same similarities, to the bit."""

import itertools

import pytest
import torch
from problems import IGNORE, labels

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.fused import thresholds
from pixcontrast._info_nce.fused.layout import lay_out, sample_entries
from pixcontrast._info_nce.fused.thresholds import Source, select_thresholds
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.thresholds import PairKeys, thresholds_of_rows
from pixcontrast._tensors import mark_ignored

SIDES = [(1, 5), (7, None), (60, 500)]
STRATEGIES = [("hardest", 0.1), ("semi-hard", 0.1), ("semi-hard", 0.6), ("random", 0.1)]
SAMPLERS = [
    HardNegativeSampler(strategy=strategy, ratio=ratio, num_negatives=most, num_positives=few)
    for (strategy, ratio), (most, few) in zip(STRATEGIES * 2, itertools.cycle(SIDES), strict=False)
]


def whole_numbers(rows, generator, scale):
    """Vectors whose products are exact in float32 if `scale` is a power of two.

    Many products are equal, and some are zeros of either sign.
    """
    made = torch.randint(-2, 3, (rows, 3), generator=generator).float()
    return made * scale


def problem(sampler, seed=0, scale=1.0, num_anchors=33, classes=4):
    generator = torch.Generator().manual_seed(seed)
    anchor_labels = mark_ignored(labels(num_anchors, classes, generator), IGNORE)
    anchors = whole_numbers(num_anchors, generator, scale)
    other_labels = mark_ignored(labels(17, classes + 2, generator), IGNORE)
    bank_labels = torch.arange(65) // 13
    bank_labels[10:13] = bank_labels[20:35] = -1  # not written
    return Problem.of(
        anchors,
        anchor_labels,
        [
            (whole_numbers(17, generator, scale), other_labels),
            (None, None),
            (whole_numbers(65, generator, 1.0), bank_labels),
        ],
        form="triton",
        temperature=0.5,
        negative_sampler=sampler,
        seed=torch.tensor(seed + 12345),
    )


def by_the_rule(layout):
    given, anchors = layout.problem, layout.anchors
    entries, classes, bits = (
        torch.cat([getattr(tensor.entries, name) for tensor in layout.contrast])
        for name in ("vectors", "classes", "key_bits")
    )
    scale = torch.tensor(given.inverse_temperature * LOG2_E, dtype=torch.float32)
    limit = given.logit_limit * LOG2_E
    logits = ((anchors.vectors @ entries.T) * scale).clamp(-limit, limit)
    anchor_classes = anchors.classes[:, None]
    valid = (classes >= 0) & (anchor_classes >= 0)
    same = anchor_classes == classes
    positive = valid & same
    first = len(layout.contrast[0])
    positive[:, first : first + len(anchor_classes)].fill_diagonal_(False)
    keys = PairKeys(anchors.key_bits[:, None], bits).all()
    masks = Masks(positive, valid & ~same)
    return thresholds_of_rows(given.negative_sampler, logits, masks, keys)


def check(layout):
    num_valid = int(layout.anchors.num_valid)
    expected = by_the_rule(layout)
    sources = [Source(layout, layout.order)]
    found = select_thresholds(layout.problem.negative_sampler, sources)
    found = found.of(layout.order)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert torch.equal(actual[:num_valid], wanted[:num_valid])
    return expected


@pytest.mark.parametrize("sampler", SAMPLERS, ids=range(len(SAMPLERS)))
def test_thresholds_are_those_of_the_rule(sampler):
    check(lay_out(problem(sampler, seed=sampler.num_positives or 0)))


@pytest.mark.parametrize(("number", "columns"), [(0, 8), (2, 8), (5, 32), (7, 8)])
def test_passes_over_more_entries_than_are_stored(number, columns, monkeypatch):
    """The sample is small, so that many estimates are wrong, and more candidates tie than fit."""
    monkeypatch.setattr(thresholds, "COLUMNS", columns)
    check(lay_out(problem(SAMPLERS[number], seed=1)))


@pytest.mark.parametrize("stride", [1, 1000])
def test_wrong_estimates_are_noticed(stride, monkeypatch):
    """The sample is taken for a part of another size: the threshold lies above or below."""

    def mislead(layout, size):
        sampled, actual = sample_entries(layout, size)
        assert actual == 3
        return sampled, stride

    monkeypatch.setattr(thresholds, "COLUMNS", 64)
    monkeypatch.setattr(thresholds, "sample_entries", mislead)
    sampler = HardNegativeSampler(strategy="hardest", num_negatives=60, num_positives=None)
    check(lay_out(problem(sampler)))


# Powers of two: sums of products stay exact, so that every library computes the same bits.
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60], ids=["small", "large"])
def test_similarities_of_any_size(scale):
    sampler = HardNegativeSampler(strategy="hardest", num_negatives=9, num_positives=3)
    layout = lay_out(problem(sampler, scale=scale))
    expected = check(layout)
    assert torch.isfinite(expected.negative_logit[: int(layout.anchors.num_valid)]).all()


def test_few_anchors_and_one_class():
    sampler = HardNegativeSampler(num_negatives=4, num_positives=4)
    for num_anchors, classes in ((1, 1), (5, 1), (3, 4)):
        check(lay_out(problem(sampler, num_anchors=num_anchors, classes=classes)))
