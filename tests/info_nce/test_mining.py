"""The selection against one made row by row with sorted lists."""

import math

import pytest
import torch
from problems import IGNORE, error_of_loss, labels, vectors

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.thresholds import PairKeys, select_from_rows
from pixcontrast._info_nce.tiled import row_blocks
from pixcontrast.functional import info_nce
from pixcontrast.samplers import draw_seed


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(40, 200, generator=generator, dtype=torch.float64)
    chance = torch.rand(40, 200, generator=generator)
    positive, negative = chance < 0.2, chance > 0.3
    negative[0] = False  # an anchor without negatives
    positive[1] = False
    return similarity, positive, negative


def hardest(similarity, candidate, count, sign):
    ranked = sorted(torch.nonzero(candidate).flatten().tolist(), key=lambda j: sign * similarity[j])
    return set(ranked if count is None else ranked[:count])


def select(sampler, similarity, positive, negative, seed):
    keys = None
    if seed is not None:
        keys = PairKeys.of(seed, *(torch.arange(size) for size in similarity.shape)).all()
    return select_from_rows(sampler, similarity, Masks(positive, negative), keys)


def chosen(mask):
    return [set(torch.nonzero(row).flatten().tolist()) for row in mask]


@pytest.mark.parametrize(("num_negatives", "num_positives"), [(7, 3), (None, 1), (500, None)])
def test_hardest(rows, num_negatives, num_positives):
    similarity, positive, negative = rows
    sampler = HardNegativeSampler(
        strategy="hardest", num_negatives=num_negatives, num_positives=num_positives
    )
    kept = select(sampler, *rows, seed=draw_seed(sampler, similarity.device, None))
    for i, (positives, negatives) in enumerate(zip(*map(chosen, kept), strict=True)):
        assert negatives == hardest(similarity[i], negative[i], num_negatives, -1)
        assert positives == hardest(similarity[i], positive[i], num_positives, +1)


@pytest.mark.parametrize(
    ("strategy", "ratio"), [("semi-hard", 0.1), ("semi-hard", 0.5), ("random", 0.1)]
)
@pytest.mark.parametrize("count", [1, 4, 1000])
def test_drawn_from_the_pool(rows, strategy, ratio, count):
    similarity, positive, negative = rows
    sampler = HardNegativeSampler(
        strategy=strategy, ratio=ratio, num_negatives=count, num_positives=count
    )
    generator = torch.Generator().manual_seed(0)
    often = torch.zeros(2, 40, 200)
    draws = 300
    for _ in range(draws):
        kept = select(sampler, *rows, seed=draw_seed(sampler, similarity.device, generator))
        for side, mask in enumerate(kept):
            often[side] += mask
    for side, (candidates, sign) in enumerate([(positive, +1), (negative, -1)]):
        for i in range(40):
            available = int(candidates[i].sum())
            pool_size = available
            if strategy == "semi-hard":
                pool_size = min(max(math.ceil(round(ratio * available, 6)), 1), available)
            pool = hardest(similarity[i], candidates[i], pool_size, sign)
            share = often[side, i] / draws
            assert set(torch.nonzero(share).flatten().tolist()) <= pool
            taken = min(count, pool_size)
            torch.testing.assert_close(share.sum(), torch.tensor(float(taken)), atol=1e-3, rtol=0)
            if pool:
                expected = taken / len(pool)
                drawn = share[list(pool)]
                margin = 6 * math.sqrt(expected * (1 - expected) / draws) + 1e-6
                assert (drawn - expected).abs().max() < margin


def test_seven_percent_of_a_hundred_are_seven():
    similarity = torch.arange(100.0)[None]
    everything = torch.ones(1, 100, dtype=torch.bool)
    sampler = HardNegativeSampler(ratio=0.07, num_negatives=100, num_positives=100)
    _, negatives = select(sampler, similarity, ~everything, everything, seed=torch.tensor(1))
    assert chosen(negatives) == [set(range(93, 100))]


def test_draws_of_anchors_are_their_own():
    similarity = torch.zeros(2000, 10, dtype=torch.float64)
    everything = torch.ones(2000, 10, dtype=torch.bool)
    sampler = HardNegativeSampler(strategy="random", num_negatives=5, num_positives=None)
    _, kept = select(sampler, similarity, ~everything, everything, seed=torch.tensor(9))
    assert (kept.sum(1) == 5).all()
    # Each pair of entries is in one draw with probability 2/9, for neighbours and others alike.
    both = (kept[:, :, None] & kept[:, None, :]).double().mean(0)
    off = both[~torch.eye(10, dtype=torch.bool)]
    assert (off - 2 / 9).abs().max() < 5 * (2 / 9 * 7 / 9 / 2000) ** 0.5
    # And two anchors share 2.5 entries on average.
    shared = (kept[:-1] & kept[1:]).sum(1).double().mean()
    assert abs(float(shared) - 2.5) < 0.1


def test_the_selected_sets_stand_in_both_denominators():
    generator = torch.Generator().manual_seed(1)
    anchors, anchor_labels = vectors(12, 6, generator), labels(12, 3, generator)
    entries, entry_labels = vectors(40, 6, generator), labels(40, 3, generator)
    mining = HardNegativeSampler(strategy="hardest", num_negatives=4, num_positives=2)
    for denominator in ("negatives", "all"):
        each = info_nce(
            anchors,
            anchor_labels,
            entries,
            entry_labels,
            denominator=denominator,
            negative_sampler=mining,
            reduction="none",
        )
        for i, label in enumerate(anchor_labels.tolist()):
            if label == 255 or label < 0:
                assert each[i] == 0
                continue
            s = entries @ anchors[i] / 0.1
            there = (entry_labels != 255) & (entry_labels >= 0)
            positives = s[there & (entry_labels == label)].sort().values[:2]
            negatives = s[there & (entry_labels != label)].sort().values[-4:]
            if denominator == "negatives":
                z = negatives.logsumexp(0)
                expected = torch.logaddexp(positives, z).sub(positives).mean()
            else:
                expected = torch.cat([positives, negatives]).logsumexp(0) - positives.mean()
            torch.testing.assert_close(each[i], expected, rtol=1e-12, atol=0)


def test_stripes_do_not_change_the_choice(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    arguments = (
        vectors(50, 6, generator),
        labels(50, 3, generator),
        vectors(300, 6, generator),
        labels(300, 3, generator),
    )
    options = {
        "negative_sampler": HardNegativeSampler(ratio=0.3, num_negatives=9),
        "reduction": "none",
    }
    losses = []
    for stripe in (1, 900, 1 << 20):
        monkeypatch.setattr(row_blocks, "BLOCK_SIZE", stripe)
        generator.manual_seed(4)
        losses.append(info_nce(*arguments, generator=generator, backend="tiled", **options))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-12, atol=0)


def assert_no_near_tie(anchors, anchor_labels, bank, bank_labels):
    """The hardest of each side leads by more than rounding, so that every product selects it."""
    anchors = anchors.detach()
    entries, entry_labels = torch.cat([anchors, bank]), torch.cat([anchor_labels, bank_labels])
    similarity = anchors.double() @ entries.double().T
    valid = (entry_labels >= 0) & (entry_labels != IGNORE)
    same = anchor_labels[:, None] == entry_labels
    others = valid & ~torch.eye(*similarity.shape, dtype=torch.bool)
    for sign, candidates in ((1, others & ~same), (-1, others & same)):
        hardness = (sign * similarity).masked_fill(~candidates, -math.inf)
        first, second = hardness[valid[: len(anchors)]].topk(2, dim=1).values.T
        # Twice the rounding of a product of unit vectors of so many components.
        assert (first - second).min() > 2 * anchors.shape[1] * torch.finfo(anchors.dtype).eps


def test_forward_and_backward_see_the_same_bits(monkeypatch):
    """With one negative and one positive an anchor, each entry that counts is at its threshold.

    A similarity that came out one bit lower in the backward would lose it.
    """
    monkeypatch.setattr(
        row_blocks, "BLOCK_SIZE", 6_300
    )  # one row a stripe, another routine of BLAS
    generator = torch.Generator().manual_seed(2)
    anchors = vectors(300, 64, generator, torch.float32).requires_grad_()
    anchor_labels = labels(300, 5, generator)
    bank, bank_labels = vectors(6_000, 64, generator, torch.float32), labels(6_000, 5, generator)
    bank = 0.5 * bank  # so that the batch holds the hardest
    assert_no_near_tie(anchors, anchor_labels, bank, bank_labels)
    gradients = [
        torch.autograd.grad(
            info_nce(
                anchors,
                anchor_labels,
                [None, bank],
                [None, bank_labels],
                negative_sampler=HardNegativeSampler(
                    strategy="hardest", num_negatives=1, num_positives=1
                ),
                backend=backend,
            ),
            anchors,
        )[0]
        for backend in ("tiled", "dense")
    ]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


@pytest.mark.parametrize(("entries", "ratio"), [(66_953, 0.1234), (99_187, 0.0123)])
def test_a_pool_of_nearly_every_entry(entries, ratio):
    """Sizes at which rounding in float32 would make the largest pool smaller than one in it."""
    contrast = torch.rand(entries, 1, dtype=torch.float64)
    contrast_labels = torch.ones(entries, dtype=torch.int64)
    contrast_labels[0] = 0
    mining = HardNegativeSampler(ratio=ratio, num_negatives=5, num_positives=5)
    loss = info_nce(torch.ones(1, 1).double(), torch.tensor([0]), contrast, contrast_labels,
                    negative_sampler=mining)  # fmt: skip
    assert torch.isfinite(loss)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_the_smallest_pool_is_the_hardest_one(backend):
    generator = torch.Generator().manual_seed(3)
    anchors, anchor_labels = vectors(40, 6, generator), labels(40, 3, generator)
    count = {"num_negatives": 1, "num_positives": 1}
    hardest, pool = (
        info_nce(anchors, anchor_labels, negative_sampler=mining, reduction="none", backend=backend)
        for mining in (
            HardNegativeSampler(strategy="hardest", **count),
            HardNegativeSampler(strategy="semi-hard", ratio=1e-3, **count),
        )
    )
    # The two may be gathered in tensors of other widths, where the last bit of exp can differ.
    bound = error_of_loss(torch.float64, 6, 1 / 0.1, 2)
    torch.testing.assert_close(hardest, pool, rtol=0, atol=bound)


@pytest.mark.parametrize("strategy", ["hardest", "semi-hard", "random"])
def test_a_single_anchor(strategy):
    """Against several entries, and against one."""
    generator = torch.Generator().manual_seed(4)
    anchor, one_label = vectors(1, 6, generator), torch.tensor([1])
    mining = HardNegativeSampler(strategy=strategy, ratio=0.5, num_negatives=2, num_positives=1)
    for num_entries in (30, 1):
        entries, entry_labels = (
            vectors(num_entries, 6, generator),
            labels(num_entries, 2, generator),
        )
        entry_labels[0] = 1
        found = []
        for backend in ("dense", "tiled"):
            leaves = [anchor.clone().requires_grad_(), entries.clone().requires_grad_()]
            loss = info_nce(
                leaves[0], one_label, leaves[1], entry_labels, negative_sampler=mining,
                denominator="all", backend=backend, generator=torch.Generator().manual_seed(5),
            )  # fmt: skip
            found.append([loss, *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
        assert bool(found[0][0] > 0) == (num_entries > 1)


@pytest.mark.parametrize("strategy", ["hardest", "semi-hard", "random"])
def test_the_gradient_of_entries_beside_some_that_want_none(strategy):
    """The selection is made again in the backward, among all entries."""
    generator = torch.Generator().manual_seed(6)
    anchors, bank, entries = vectors(47, 4, generator).split((12, 20, 15))
    anchor_labels, *of_entries = labels(47, 3, generator).split((12, 20, 15))
    entries.requires_grad_()
    mining = HardNegativeSampler(strategy=strategy, ratio=0.5, num_negatives=3, num_positives=2)
    found = []
    for backend in ("dense", "tiled"):
        loss = info_nce(
            anchors, anchor_labels, [bank, entries], of_entries, negative_sampler=mining,
            backend=backend, generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        found.append(torch.autograd.grad(loss, entries)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    assert found[0].any()
