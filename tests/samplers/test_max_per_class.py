"""A limit on the anchors of one class over the batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixcontrast import HardAnchorSampler, PixelContrastLoss, RandomAnchorSampler

SAMPLERS = [HardAnchorSampler, RandomAnchorSampler]
each_sampler = pytest.mark.parametrize("kind", SAMPLERS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def taken_by_group(sample, num_pixels):
    """Image and class → how many anchors."""
    taken = {}
    for index, label in zip(sample.indices.tolist(), sample.labels.tolist(), strict=True):
        if label != 255:
            group = (index // num_pixels, label)
            taken[group] = taken.get(group, 0) + 1
    return taken


@given(
    kind=st.sampled_from(SAMPLERS),
    images=st.integers(0, 4),
    num_pixels=st.integers(0, 40),
    classes=st.integers(1, 5),
    max_anchors=st.integers(1, 60),
    max_views=st.integers(1, 12),
    most=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_shares_of_a_class(kind, images, num_pixels, classes, max_anchors, max_views, most, seed):
    labels = torch.randint(-1, classes, (images, num_pixels), generator=seeded(seed))
    preds = torch.randint(0, classes, labels.shape, generator=seeded(seed + 1))
    free = kind(max_anchors=max_anchors, max_views=max_views)
    limited = replace(free, max_per_class=most)
    sample = limited(labels, preds, generator=seeded(seed))
    assert sample.indices.shape == (min(max_anchors, labels.numel()),)
    there = sample.labels != 255
    assert torch.equal(labels.flatten()[sample.indices[there]], sample.labels[there])
    assert len(set(sample.indices[there].tolist())) == int(there.sum())
    before = taken_by_group(free(labels, preds, generator=seeded(seed)), max(num_pixels, 1))
    after = taken_by_group(sample, max(num_pixels, 1))
    assert set(after) <= set(before)  # the same groups are drawn
    for c in range(classes):
        groups = [group for group in before if group[1] == c]
        if not groups:
            continue
        assert sum(after.get(group, 0) for group in groups) <= most
        share, remainder = divmod(most, len(groups))
        more = 0
        for group in groups:
            least = min(before[group], share)
            assert after.get(group, 0) in (least, min(before[group], share + 1))
            more += after.get(group, 0) > least
        assert more <= remainder


@each_sampler
def test_the_remainder_goes_to_any_group(kind):
    labels = torch.zeros(4, 10, dtype=torch.int64)
    sampler = kind(max_anchors=40, max_views=10, max_per_class=1)
    images = {int(sampler(labels, generator=seeded(s)).indices[0]) // 10 for s in range(60)}
    assert images == {0, 1, 2, 3}


@each_sampler
def test_a_limit_that_does_not_bind_changes_no_choice_of_groups(kind):
    labels = torch.randint(-1, 3, (2, 50), generator=seeded())
    free, limited = (
        kind(max_anchors=30, max_per_class=most)(labels, generator=seeded()) for most in (None, 99)
    )
    assert torch.equal(free.indices, limited.indices)


@each_sampler
def test_in_a_loss_compiled_and_eager(kind):
    loss = PixelContrastLoss(anchor_sampler=kind(max_anchors=24, max_per_class=5))
    emb, labels = torch.randn(2, 8, 6, 6, generator=seeded()), torch.arange(72).view(2, 6, 6) % 3
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    values = []
    for criterion in (loss, compiled):
        torch.manual_seed(0)
        values.append(criterion(emb, labels))
    # The compiled call sums in another order.
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)
    assert int(loss.stats.anchors) == 15


@each_sampler
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_limit_is_refused(kind, value, error):
    with pytest.raises(error, match="max_per_class"):
        kind(max_per_class=value)
