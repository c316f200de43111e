"""What a call of a loss did, in numbers that cost no wait: for a log, not for a gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._dtypes import without_autocast
from pixcontrast._labels import IGNORED
from pixcontrast._pixels import unit_length

# Classes that are told of where how many there are is unknown.
MOST_CLASSES = 256


class Stats(NamedTuple):
    """What the last call of a loss did, a tensor of one number each, on the loss's device.

    Nothing is waited for until a number is read, as by `float(stats.hard_share)`. They are made
    when `loss.stats` is asked for, of what the call left behind, by some sixty small operations:
    ask as seldom as you log. After the replay of a captured CUDA graph they are those of the
    replay. Without a bank groups and similarities are those of the classes below 256.

    Attributes:
        anchors: int64, how many anchors had a positive; the mean is over these.
        entries: int64, how many contrast entries took part, before any mining.
        groups: int64, how many groups the batch had, the pixels of one class in one image each.
        groups_skipped: int64, how many of them gave no anchor, being too small or too many.
        hard_share: float32 in [0, 1], the share of mispredicted pixels among the sampled ones.
        positive_similarity: float32 in [−1, 1], the mean cosine of two sampled pixels of one
            class; 0 where there are no two.
        negative_similarity: float32 in [−1, 1], that of two sampled pixels of different classes.
        bank_occupancy: float32 in [0, 1], the share of the bank's slots that are written, after
            the call; 0 without a bank.
    """

    anchors: Tensor
    entries: Tensor
    groups: Tensor
    groups_skipped: Tensor
    hard_share: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    bank_occupancy: Tensor


class Call(NamedTuple):
    """What a call leaves behind, of which its statistics can be made.

    Attributes:
        labels: (B, P) int64, `IGNORED` for ignored pixels.
        indices: (K,) the numbers of the sampled pixels among B·P.
        sampled: (K,) int64, their labels, `IGNORED` for padding.
        preds: (K,) their predicted classes, or None: all as the labels say.
        anchors: (K, D) detached.
        has_positive: (K,) bool.
        batch_labels: (n,) int64, of the entries that the batch itself gave, `IGNORED` where there
            is none; None: it gave none.
        bank_entries: () int64 each, how many valid entries each queue gave.
        written: () int64 each, how many slots of each queue were written after the call.
        slots: how many there are in all.
        num_classes: how many classes are told of.
    """

    labels: Tensor
    indices: Tensor
    sampled: Tensor
    preds: Tensor | None
    anchors: Tensor
    has_positive: Tensor
    batch_labels: Tensor | None
    bank_entries: tuple[Tensor, ...]
    written: tuple[Tensor, ...]
    slots: int
    num_classes: int


@torch.no_grad()
def describe(call: Call) -> Stats:
    """The statistics of a call."""
    none = call.sampled.new_zeros(())
    groups, skipped = count_groups(call.labels, call.sampled, call.indices, call.num_classes)
    positive, negative = similarities(call.anchors, call.sampled, call.num_classes)
    of_batch = () if call.batch_labels is None else ((call.batch_labels != IGNORED).sum(),)
    return Stats(
        anchors=call.has_positive.sum(),
        entries=sum((*of_batch, *call.bank_entries), none),
        groups=groups,
        groups_skipped=skipped,
        hard_share=hard_share(call.preds, call.sampled),
        positive_similarity=positive,
        negative_similarity=negative,
        bank_occupancy=sum(call.written, none).float() / max(1, call.slots),
    )


def count_groups(
    labels: Tensor, sampled: Tensor, indices: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """() int64, how many groups there are, and how many of them gave no pixel.

    Args:
        labels: (B, P) int64.
        sampled: (K,) int64, labels of the sampled pixels.
        indices: (K,) their numbers among B·P.
        num_classes: labels outside [0, num_classes) do not count.
    """
    num_images, num_pixels = labels.shape
    image = torch.arange(num_images, device=labels.device)[:, None]
    there, gave = (
        labels.new_zeros(num_images * (num_classes + 1), dtype=torch.bool).scatter_(
            0, _group(of_image, of_class, num_classes).flatten(), True
        )
        for of_image, of_class in ((image, labels), (indices // max(1, num_pixels), sampled))
    )
    there = there.view(num_images, num_classes + 1)[:, :num_classes]
    gave = gave.view(num_images, num_classes + 1)[:, :num_classes]
    return there.sum(), (there & ~gave).sum()


def _group(image: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The number of a class in an image; what does not count has one of its own."""
    counts = (label >= 0) & (label < num_classes)
    return image * (num_classes + 1) + torch.where(counts, label, num_classes)


def hard_share(preds: Tensor | None, labels: Tensor) -> Tensor:
    """() float32, of sampled pixels (K,) with these predicted classes and labels."""
    if preds is None:
        return torch.zeros((), device=labels.device)
    there = labels != IGNORED
    return (there & (preds != labels)).sum() / there.sum().clamp(min=1)


def similarities(anchors: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """() float32 mean cosine of all pairs of one class, and of all pairs of two.

    Of sums, Σ_c |Σ_{i∈c} a_i|² and |Σ_i a_i|², so that no pair is ever made.

    Args:
        anchors: (K, D).
        labels: (K,) int64; those outside [0, num_classes) do not count.
        num_classes: how many there may be.
    """
    unit = unit_length(anchors.detach().to(torch.float32))
    classes = torch.arange(num_classes, device=labels.device)
    members = (labels == classes[:, None]).to(torch.float32)
    with without_autocast(anchors.device):
        sums = members @ unit
        counts = members.sum(dim=1)
        itself = members.sum(dim=0) @ unit.square().sum(dim=1)
    same = sums.square().sum()
    every = sums.sum(dim=0).square().sum()
    same_pairs, pairs = counts.square().sum(), counts.sum().square()
    positive = (same - itself) / (same_pairs - counts.sum()).clamp(min=1)
    negative = (every - same) / (pairs - same_pairs).clamp(min=1)
    return positive.clamp(-1, 1), negative.clamp(-1, 1)
