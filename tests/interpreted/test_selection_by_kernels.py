"""Thresholds that kernels select, beside the rule on the same similarities: equal, to the bit."""

import itertools

import pytest
import torch
from problems import IGNORE, labels

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.fused.layout import lay_out
from pixcontrast._info_nce.fused.thresholds import select_thresholds
from pixcontrast._info_nce.problem import LOG2_E, ContrastTensor, Problem
from pixcontrast._info_nce.random_keys import PairKeys
from pixcontrast._info_nce.thresholds import thresholds_of_rows
from pixcontrast._labels import mark_ignored

SIDES = [(1, 5), (7, None), (60, 500)]
STRATEGIES = [("hardest", 0.1), ("semi-hard", 0.1), ("semi-hard", 0.6), ("random", 0.1)]
MININGS = [
    HardNegativeSampler(strategy=strategy, ratio=ratio, num_negatives=most, num_positives=few)
    for (strategy, ratio), (most, few) in zip(STRATEGIES * 2, itertools.cycle(SIDES), strict=False)
]


def whole_numbers(rows, generator, scale):
    """Vectors whose products are exact in float32 if `scale` is a power of two.

    Many products are equal, and some are zeros of either sign.
    """
    made = torch.randint(-2, 3, (rows, 3), generator=generator).float()
    return made * scale


def problem(mining, seed=0, scale=1.0, num_anchors=33, classes=4):
    generator = torch.Generator().manual_seed(seed)
    anchor_labels = mark_ignored(labels(num_anchors, classes, generator), IGNORE)
    anchors = whole_numbers(num_anchors, generator, scale)
    other_labels = mark_ignored(labels(17, classes + 2, generator), IGNORE)
    bank_labels = torch.arange(65) // 13
    bank_labels[10:13] = bank_labels[20:35] = -1  # not yet written
    pieces = [
        ContrastTensor(whole_numbers(17, generator, scale), other_labels, False, 0),
        ContrastTensor(anchors, anchor_labels, True, 17),
        ContrastTensor(whole_numbers(65, generator, 1.0), bank_labels, False, 17 + num_anchors),
    ]
    return Problem(
        anchors=anchors,
        labels=anchor_labels,
        contrast=tuple(pieces),
        temperature=0.5,
        denominator="negatives",
        negative_sampler=mining,
        seed=torch.tensor(seed + 12345),
        product_dtype=torch.float32,
        compute_dtype=torch.float32,
    )


def by_the_rule(layout):
    given, rows = layout.problem, layout.rows
    entries = torch.cat([piece.entries for piece in layout.pieces])
    classes = torch.cat([piece.classes for piece in layout.pieces])
    bits = torch.cat([piece.bits for piece in layout.pieces])
    scale = torch.tensor(given.inverse_temperature * LOG2_E, dtype=torch.float32)
    limit = given.logit_limit * LOG2_E
    logits = ((rows.vectors @ entries.T) * scale).clamp(-limit, limit)
    same = rows.classes[:, None] == classes
    there = (classes >= 0) & (rows.classes >= 0)[:, None]
    positive = there & same
    first = len(layout.pieces[0])
    positive[:, first : first + len(rows.classes)].fill_diagonal_(False)
    keys = PairKeys(rows.bits[:, None], bits).all()
    return thresholds_of_rows(given.negative_sampler, logits, Masks(positive, there & ~same), keys)


@pytest.mark.parametrize("mining", MININGS, ids=range(len(MININGS)))
def test_thresholds_are_those_of_the_rule(mining):
    layout = lay_out(problem(mining, seed=mining.num_positives or 0))
    num_present = int(layout.rows.num_present)
    for actual, expected in zip(select_thresholds(layout), by_the_rule(layout), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual[:num_present], expected[:num_present])


# Powers of two: sums of products stay exact, so that every library computes the same bits.
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**60], ids=["small", "large"])
def test_similarities_of_any_size(scale):
    mining = HardNegativeSampler(strategy="hardest", num_negatives=9, num_positives=3)
    layout = lay_out(problem(mining, scale=scale))
    num_present = int(layout.rows.num_present)
    expected = by_the_rule(layout)
    assert torch.isfinite(expected.negative_logit[:num_present]).all()
    for actual, wanted in zip(select_thresholds(layout), expected, strict=True):
        assert torch.equal(actual[:num_present], wanted[:num_present])


def test_what_has_no_anchor_or_one_class():
    mining = HardNegativeSampler(num_negatives=4, num_positives=4)
    for num_anchors, classes in ((1, 1), (5, 1), (3, 4)):
        layout = lay_out(problem(mining, num_anchors=num_anchors, classes=classes))
        num_present = int(layout.rows.num_present)
        for actual, expected in zip(select_thresholds(layout), by_the_rule(layout), strict=True):
            assert torch.equal(actual[:num_present], expected[:num_present])
