"""What mining keeps by partial sorts on the CPU, against the rule that masks follow."""

import pytest
import torch
from problems import labels, loss_and_gradients, vectors, worst_error

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce.thresholds import LARGEST_KEY, PairKeys
from pixcontrast._info_nce.tiled import mined, similarities


def keys_by_hand(seed, row, column):
    def mixed(number):
        number &= 0xFFFFFFFF
        for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            number = (number ^ (number >> shift)) * multiplier & 0xFFFFFFFF
        return number ^ (number >> 16)

    low, high = seed & LARGEST_KEY, seed >> 31 & LARGEST_KEY
    key = mixed(mixed(mixed(row + high) ^ low) ^ mixed(column + low))
    return key - (1 << 32) if key >> 31 else key


@pytest.mark.parametrize("seed", [0, 5, (1 << 62) + 12345, (1 << 63) - 1])
def test_keys_are_those_of_the_numbers(seed):
    rows, columns = torch.tensor([0, 3, 1000]), torch.tensor([1 << 20, 7, 2, 9])
    keys = PairKeys.of(torch.tensor(seed), rows, columns)
    expected = [[keys_by_hand(seed, r, c) for c in columns.tolist()] for r in rows.tolist()]
    assert keys.all().tolist() == expected
    places = torch.tensor([[3, 0], [1, 1], [2, 0]])
    assert keys.at(places).tolist() == torch.tensor(expected).gather(1, places).tolist()
    assert keys.part(slice(1, 3), slice(0, 2)).all().tolist() == [row[:2] for row in expected[1:]]


def test_keys_of_an_anchor_are_distinct():
    keys = PairKeys.of(torch.tensor(3), torch.arange(4), torch.arange(200_000)).all()
    for row in keys:
        assert row.unique().numel() == row.numel()
    # And no anchor's are another's: each has its own half of the entries below 0.
    below = (keys < 0).double()
    assert (below.mean(dim=1) - 0.5).abs().max() < 0.01
    assert torch.corrcoef(below).triu(1).abs().max() < 0.02


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("columns", [1, 15, 16, 33, 100, 400])
@pytest.mark.parametrize("count", [1, 2, 25])
def test_the_largest(columns, count, largest):
    values = torch.randint(50, (7, columns)).float()  # with many ties
    count = min(count, columns)
    found, places = mined._topk(values, count, largest=largest)
    assert torch.equal(values.gather(1, places), found)
    assert all(row.unique().numel() == count for row in places)
    torch.testing.assert_close(
        found.sort(descending=largest).values,
        values.topk(count, dim=1, largest=largest).values,
        rtol=0,
        atol=0,
    )


def compare(anchors, anchor_labels, pieces, piece_labels, **options):
    results = [
        loss_and_gradients(
            backend,
            anchors,
            anchor_labels,
            pieces,
            piece_labels,
            generator=torch.Generator().manual_seed(7),
            **options,
        )
        for backend in ("tiled", "dense")
    ]
    assert worst_error(*results) < 1e-10


@pytest.mark.parametrize("strategy", ["hardest", "semi-hard", "random"])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize(
    ("num_negatives", "num_positives"), [(20, 5), (None, 5), (20, None), (None, None), (10**6, 1)]
)
def test_gathered_equals_dense(strategy, denominator, num_negatives, num_positives):
    generator = torch.Generator().manual_seed(0)
    anchors, anchor_labels = vectors(60, 8, generator), labels(60, 30, generator)
    bank, bank_labels = vectors(1500, 8, generator), labels(1500, 30, generator)
    mining = HardNegativeSampler(
        strategy=strategy,
        ratio=0.04,
        num_negatives=num_negatives,
        num_positives=num_positives,
    )
    compare(
        anchors,
        anchor_labels,
        [None, bank, None],
        [None, bank_labels, None],
        negative_sampler=mining,
        denominator=denominator,
    )


@pytest.mark.parametrize("strategy", ["hardest", "semi-hard"])
@pytest.mark.parametrize("copies", [2, 5, 40])
def test_all_that_tie_count(strategy, copies, monkeypatch):
    """Few ties are gathered; more than there is room for are left to masks."""
    masked = []
    monkeypatch.setattr(
        mined,
        "masked_rows",
        lambda *a, f=mined.masked_rows, **o: masked.append(1) or f(*a, **o),
    )
    generator = torch.Generator().manual_seed(0)
    # Powers of two: equal vectors have equal similarities, in whatever product.
    anchors = torch.eye(4, dtype=torch.float64).repeat(5, 1)
    entries = torch.stack([torch.randperm(60, generator=generator) for _ in range(4)], dim=1)
    entries = entries.double() / 64
    entries = entries.repeat_interleave(copies, dim=0)
    anchor_labels, entry_labels = torch.arange(20) % 3, torch.arange(len(entries)) % 3
    mining = HardNegativeSampler(strategy=strategy, ratio=0.2, num_negatives=7, num_positives=7)
    compare(anchors, anchor_labels, [entries], [entry_labels], negative_sampler=mining)
    assert bool(masked) == (copies == 40)


def test_a_bank_of_another_dtype_is_weighed_tile_by_tile():
    generator = torch.Generator().manual_seed(0)
    anchors, anchor_labels = vectors(40, 8, generator), labels(40, 5, generator)
    bank = vectors(600, 8, generator).to(torch.bfloat16)
    mining = HardNegativeSampler(ratio=0.2, num_negatives=20, num_positives=10)
    options = {"negative_sampler": mining, "temperature": 0.3}
    bank_labels = labels(600, 5, generator)
    results = [
        loss_and_gradients(
            backend,
            anchors,
            anchor_labels,
            [bank],
            [bank_labels],
            generator=torch.Generator().manual_seed(7),
            **options,
        )
        for backend in ("tiled", "dense")
    ]
    assert worst_error(results[0][:2], results[1][:2]) < 1e-10


def test_the_cache_is_the_largest_there_is(tmp_path):
    assert similarities.largest_size(tmp_path) == similarities.ASSUMED_CACHE
    for number, size in enumerate(["32K", "1024K", "36M", "2048K"]):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size + "\n")
    assert similarities.largest_size(tmp_path) == 36 << 20
    (tmp_path / "index3" / "size").write_text("unknown")
    assert similarities.largest_size(tmp_path) == similarities.ASSUMED_CACHE
    assert similarities.last_level_cache() > 0


def test_the_strategy_by_position():
    assert HardNegativeSampler("hardest") == HardNegativeSampler(strategy="hardest")
    with pytest.raises(TypeError):
        HardNegativeSampler("hardest", 0.5)
