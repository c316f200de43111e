from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from pixcontrast import HardAnchorSampler, RandomAnchorSampler
from pixcontrast._pixels.groups import MAX_LABEL
from pixcontrast.samplers import AnchorSample

IGNORE = 255


def groups_of(labels):
    """{(image, class): pixels' numbers}, one at a time."""
    groups = {}
    for image, row in enumerate(labels.tolist()):
        for pixel, label in enumerate(row):
            if label != IGNORE and label >= 0:
                groups.setdefault((image, label), []).append(image * labels.shape[1] + pixel)
    return groups


def taken_by_group(sample, labels):
    there = sample.labels != IGNORE
    indices, num_taken = sample.indices[there].tolist(), int(there.sum())
    assert len(set(indices)) == num_taken, "without replacement"
    assert (sample.labels[num_taken:] == IGNORE).all(), "padding comes last"
    assert (sample.indices[num_taken:] == 0).all()
    assert torch.equal(labels.flatten()[sample.indices[there]].long(), sample.labels[there])
    taken = {}
    for index, label in zip(indices, sample.labels.tolist(), strict=False):
        taken.setdefault((index // labels.shape[1], label), []).append(index)
    return taken


maps = st.builds(
    lambda images, pixels, classes, seed: torch.randint(
        -2, classes, (images, pixels), generator=torch.Generator().manual_seed(seed)
    ),
    st.integers(0, 4),
    st.integers(0, 60),
    st.sampled_from([1, 2, 5, 40]),
    st.integers(0, 1000),
)


@given(
    labels=maps,
    max_anchors=st.integers(1, 80),
    max_views=st.integers(1, 12),
    hard_fraction=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    min_pixels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_every_rule_of_hard_sampling(
    labels, max_anchors, max_views, hard_fraction, min_pixels, seed
):
    labels[labels == -2] = IGNORE
    generator = torch.Generator().manual_seed(seed)
    preds = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.4, labels, (labels + 1).clamp(0, 9)
    )
    sampler = HardAnchorSampler(
        max_anchors=max_anchors,
        max_views=max_views,
        hard_fraction=hard_fraction,
        min_pixels=min_pixels,
    )
    sample = sampler(labels, preds, ignore_index=IGNORE, generator=generator)
    assert sample.indices.shape == sample.labels.shape == (min(max_anchors, labels.numel()),)
    groups = {
        name: pixels for name, pixels in groups_of(labels).items() if len(pixels) >= min_pixels
    }
    taken = taken_by_group(sample, labels)
    assert set(taken) <= set(groups)
    if len(groups) > max_anchors:
        assert len(taken) == max_anchors
        assert all(len(pixels) == 1 for pixels in taken.values())
        return
    views = min(max(max_anchors // max(len(groups), 1), 1), max_views)
    assert {name: len(pixels) for name, pixels in taken.items()} == {
        name: min(views, len(pixels)) for name, pixels in groups.items()
    }
    wrong = (preds != labels).flatten().tolist()
    for name, pixels in groups.items():
        count, hard = len(taken[name]), sum(wrong[p] for p in pixels)
        easy = len(pixels) - hard
        aims = {int(hard_fraction * count), -int(-hard_fraction * count // 1)}
        allowed = {min(max(aim, count - easy), hard) for aim in aims}
        assert sum(wrong[p] for p in taken[name]) in allowed


@given(labels=maps, max_anchors=st.integers(1, 80), max_views=st.integers(1, 12))
def test_every_rule_of_random_sampling(labels, max_anchors, max_views):
    labels[labels == -2] = IGNORE
    sample = RandomAnchorSampler(max_anchors=max_anchors, max_views=max_views)(labels)
    groups, taken = groups_of(labels), taken_by_group(sample, labels)
    views = min(max(max_anchors // max(len(groups), 1), 1), max_views)
    expected = sorted(min(views, len(pixels)) for pixels in groups.values())[-max_anchors:]
    assert sorted(len(pixels) for pixels in taken.values()) == (
        expected if len(groups) <= max_anchors else [1] * max_anchors
    )


def frequencies(sampler, labels, preds, draws=2000):
    count = torch.zeros(labels.numel())
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        sample = sampler(labels, preds, generator=generator)
        count[sample.indices[sample.labels != IGNORE]] += 1
    return count / draws


def frequencies_of_images(sampler, labels, preds, draws=2000):
    """The same for one class: each of many equal images is a draw of its own."""
    images = replace(sampler, max_anchors=draws * sampler.max_anchors)
    count = frequencies(images, labels.repeat(draws, 1), preds.repeat(draws, 1), draws=1)
    return count.view(draws, -1).mean(dim=0)


def test_pixels_of_a_part_are_drawn_alike():
    labels = torch.zeros(1, 12, dtype=torch.int64)
    preds = (torch.arange(12) < 4).long()[None]  # 4 hard, 8 easy
    sampler = HardAnchorSampler(max_anchors=4, max_views=4)
    share = frequencies_of_images(sampler, labels, preds)
    # 2 of 4 hard and 2 of 8 easy: 0.5 and 0.25, within 5 standard errors.
    assert (share[:4] - 0.5).abs().max() < 5 * (0.25 / 2000) ** 0.5
    assert (share[4:] - 0.25).abs().max() < 5 * (0.1875 / 2000) ** 0.5


def test_a_fraction_is_met_on_average():
    labels = torch.zeros(1, 20, dtype=torch.int64)
    preds = (torch.arange(20) < 10).long()[None]
    for views, fraction in [(1, 0.5), (3, 0.5), (4, 0.3)]:
        sampler = HardAnchorSampler(max_anchors=4, max_views=views, hard_fraction=fraction)
        hard = float(frequencies_of_images(sampler, labels, preds)[:10].sum())
        assert abs(hard - views * fraction) < 5 * (0.25 / 2000) ** 0.5


def test_groups_beyond_the_budget_are_drawn_alike():
    labels = torch.arange(10)[None].repeat(2, 1)  # 20 groups of one pixel
    share = frequencies(RandomAnchorSampler(max_anchors=5), labels, None)
    assert (share - 0.25).abs().max() < 5 * (0.1875 / 2000) ** 0.5


def test_a_lot_does_not_ask_how_large_the_group_is():
    sizes = torch.tensor([1, 2, 60, 1, 6, 30])
    labels = torch.arange(6).repeat_interleave(sizes)[None]
    share = frequencies(RandomAnchorSampler(max_anchors=2), labels, None)
    for label, size in enumerate(sizes.tolist()):
        of_group = share[labels[0] == label]
        assert abs(float(of_group.sum()) - 2 / 6) < 5 * (2 / 9 / 2000) ** 0.5
        # And inside a group that won, no pixel is preferred.
        limit = 5 * (2 / 6 / size / 2000) ** 0.5
        assert (of_group - 2 / 6 / size).abs().max() < limit


def test_without_predictions_every_pixel_is_easy():
    labels = torch.zeros(1, 10, dtype=torch.int64)
    sample = HardAnchorSampler(max_anchors=4, hard_fraction=1.0)(labels)
    assert (sample.labels == 0).all()


def test_the_generator_decides():
    labels = torch.randint(0, 4, (2, 200))
    preds = torch.randint(0, 4, (2, 200))
    sampler = HardAnchorSampler(max_anchors=50)
    draws = [
        sampler(labels, preds, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0].indices, draws[1].indices)
    assert not torch.equal(draws[0].indices, draws[2].indices)
    torch.manual_seed(5)
    first = sampler(labels, preds)
    torch.manual_seed(5)
    assert torch.equal(first.indices, sampler(labels, preds).indices)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype(dtype):
    labels = torch.tensor([[0, 1, 1, 100, 100, 100]])
    sampler = RandomAnchorSampler(max_anchors=6, max_views=2)
    expected = sampler(labels, generator=torch.Generator().manual_seed(1))
    actual = sampler(labels.to(dtype), generator=torch.Generator().manual_seed(1))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("images", [1, 2, 300])
def test_the_largest_label_fits_into_the_sort_key(images):
    labels = torch.tensor([MAX_LABEL, MAX_LABEL - 1, 0, MAX_LABEL]).repeat(images, 1)
    sample = HardAnchorSampler(max_anchors=6 * images)(labels, torch.zeros_like(labels))
    expected = {(image, label): 2 if label == MAX_LABEL else 1
                for image in range(images) for label in (0, MAX_LABEL - 1, MAX_LABEL)}  # fmt: skip
    taken = taken_by_group(sample, labels)
    assert {name: len(pixels) for name, pixels in taken.items()} == expected


def test_no_value_decides_a_shape(monkeypatch):
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    for sampler in (HardAnchorSampler(max_anchors=9, min_pixels=3), RandomAnchorSampler()):
        with FakeTensorMode():
            labels = torch.zeros(2, 30, dtype=torch.int64)
            sample = sampler(labels, labels.clone())
        assert sample.indices.shape == sample.labels.shape == (min(sampler.max_anchors, 60),)


def test_samplers_are_plain_immutable_objects():
    for sampler in (HardAnchorSampler(max_views=3), RandomAnchorSampler(max_views=3)):
        assert "max_views=3" in repr(sampler)
        with pytest.raises(AttributeError):
            sampler.max_views = 4
        assert isinstance(sampler(torch.zeros(1, 3, dtype=torch.int64)), AnchorSample)
    with pytest.raises(TypeError):
        HardAnchorSampler(1024)


def test_labels_beyond_the_sort_key_are_ignored_where_nobody_looks(monkeypatch):
    monkeypatch.setattr("pixcontrast._check.values_can_be_seen", lambda tensor: False)
    # A label too many of one image has the key of the first label of the next.
    labels = torch.tensor([[MAX_LABEL + 1, 3], [MAX_LABEL, MAX_LABEL + 2]])
    sample = RandomAnchorSampler()(labels)
    assert sample.indices.tolist() == [1, 2, 0, 0]
    assert sample.labels.tolist() == [3, MAX_LABEL, IGNORE, IGNORE]


def test_a_group_that_draws_the_smallest_lot_is_there(monkeypatch):
    monkeypatch.setattr(
        torch, "randint", lambda high, size, **options: torch.zeros(size, dtype=torch.int64)
    )
    sample = RandomAnchorSampler(max_anchors=4)(torch.tensor([[4, 2, 4]]))
    assert sample.labels.tolist() == [2, 4, 4]


def test_groups_smaller_than_asked_for_give_nothing():
    labels = torch.tensor([[0, 0, 1]])
    for min_pixels, expected in ((2, [0, 0, IGNORE]), (3, [IGNORE] * 3), (9, [IGNORE] * 3)):
        sampler = RandomAnchorSampler(min_pixels=min_pixels)
        assert sampler(labels).labels.tolist() == expected


def test_anchors_are_ordered_by_image_and_class():
    labels = torch.tensor([[2, 0, 1, 0], [1, 0, 2, 2]])
    sample = RandomAnchorSampler()(labels)
    assert sample.labels.tolist() == [0, 0, 1, 2, 0, 1, 2, 2]
