"""Statistics of a call of a loss, computed without a wait when they are requested."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._tensors import IGNORED, unit_length, without_autocast

MAX_CLASSES = 256
"""Number of classes that are counted if the number of classes is unknown."""


class Stats(NamedTuple):
    """Statistics of the last call of a loss: tensors of one number, on the device of the loss.

    The host waits only when a number is read, for example by `float(stats.hard_share)`. Each access
    to `loss.stats` launches about sixty small operations on data kept from the call, so access it
    only when you log. After the replay of a captured CUDA graph, the statistics are those of the
    replay. Without a bank, groups and similarities only include classes below 256.

    Attributes:
        anchors: int64 number of anchors with a positive. The mean is over these.
        entries: int64 number of contrast entries that are not ignored, before any selection by a
            `negative_sampler`.
        classes: int64 number of classes with an anchor.
        groups: int64 number of groups in the batch. A group is the pixels of one class in one
            image.
        groups_skipped: int64 number of groups without an anchor: too small, or too many groups.
        hard_share: float32 fraction of the sampled pixels that are mispredicted, in [0, 1].
        positive_similarity: float32 mean cosine similarity of two sampled pixels of the same class,
            in [−1, 1]; 0 if there is no such pair.
        negative_similarity: float32 mean cosine similarity of two sampled pixels of different
            classes, in [−1, 1]; 0 if there is no such pair.
        bank_occupancy: float32 fraction of the bank's slots that are written after the call, in
            [0, 1]; 0 without a bank.
    """

    anchors: Tensor
    entries: Tensor
    classes: Tensor
    groups: Tensor
    groups_skipped: Tensor
    hard_share: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor
    bank_occupancy: Tensor


class Call(NamedTuple):
    """Data of a call, from which its statistics are computed.

    Attributes:
        labels: int64 labels of all pixels, `IGNORED` for ignored pixels, shape (B, P).
        indices: flat indices of the sampled pixels, shape (K,).
        sampled: int64 labels of the sampled pixels, `IGNORED` for padding, shape (K,).
        preds: predicted classes of the sampled pixels, shape (K,), or None.
        anchors: embeddings of the sampled pixels, detached, shape (K, D).
        has_positive: whether an anchor has a positive, shape (K,).
        batch_labels: labels of the contrast entries from the batch, shape (n,), or None if there
            are none.
        bank_entries: int64 number of valid entries of each contrasted queue.
        written: int64 number of written slots of each queue after the call.
        slots: number of slots of the bank.
        num_classes: number of classes that are counted.
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
def compute_stats(call: Call) -> Stats:
    """Compute the statistics of a call."""
    zero = call.sampled.new_zeros(())
    groups, skipped, classes = count_groups(
        call.labels, call.sampled, call.indices, call.num_classes
    )
    positive, negative = similarities(call.anchors, call.sampled, call.num_classes)
    of_batch = () if call.batch_labels is None else ((call.batch_labels != IGNORED).sum(),)
    return Stats(
        anchors=call.has_positive.sum(),
        entries=sum((*of_batch, *call.bank_entries), zero),
        classes=classes,
        groups=groups,
        groups_skipped=skipped,
        hard_share=hard_share(call.preds, call.sampled),
        positive_similarity=positive,
        negative_similarity=negative,
        bank_occupancy=sum(call.written, zero).float() / max(1, call.slots),
    )


def count_groups(
    labels: Tensor, sampled: Tensor, indices: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Count the groups, the groups without a sampled pixel, and the classes with one.

    Args:
        labels (Tensor): int64 labels, shape (B, P).
        sampled (Tensor): int64 labels of the sampled pixels, shape (K,).
        indices (Tensor): their flat indices, shape (K,).
        num_classes (int): labels outside [0, num_classes) do not count.
    """
    num_images, num_pixels = labels.shape
    image = torch.arange(num_images, device=labels.device)[:, None]
    present, has_sample = (
        labels.new_zeros(num_images * (num_classes + 1), dtype=torch.bool)
        .scatter_(0, _group(of_image, of_class, num_classes).flatten(), True)
        .view(num_images, num_classes + 1)[:, :num_classes]
        for of_image, of_class in ((image, labels), (indices // max(1, num_pixels), sampled))
    )
    return present.sum(), (present & ~has_sample).sum(), has_sample.any(dim=0).sum()


def _group(image: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Return the index of (image, class). Labels that do not count share one index per image."""
    counts = (label >= 0) & (label < num_classes)
    return image * (num_classes + 1) + torch.where(counts, label, num_classes)


def hard_share(preds: Tensor | None, labels: Tensor) -> Tensor:
    """Return the fraction of sampled pixels (K,) whose predicted class differs from the label."""
    if preds is None:
        return torch.zeros((), device=labels.device)
    valid = labels != IGNORED
    return (valid & (preds != labels)).sum() / valid.sum().clamp(min=1)


def similarities(anchors: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean cosine similarity of pairs of the same class, and of different classes.

    Computed from Σ_c |Σ_{i∈c} a_i|² and |Σ_i a_i|², without a K×K matrix.

    Args:
        anchors (Tensor): embeddings, shape (K, D).
        labels (Tensor): int64 labels, shape (K,). Those outside [0, num_classes) do not count.
        num_classes (int): number of classes that are counted.
    """
    unit = unit_length(anchors.detach().to(torch.float32))
    classes = torch.arange(num_classes, device=labels.device)
    members = (labels == classes[:, None]).to(torch.float32)
    with without_autocast(anchors.device):
        sums = members @ unit
        counts = members.sum(dim=1)
        self_sum = members.sum(dim=0) @ unit.square().sum(dim=1)
    same_sum = sums.square().sum()
    all_sum = sums.sum(dim=0).square().sum()
    same_pairs, all_pairs = counts.square().sum(), counts.sum().square()
    positive = (same_sum - self_sum) / (same_pairs - counts.sum()).clamp(min=1)
    negative = (all_sum - same_sum) / (all_pairs - same_pairs).clamp(min=1)
    return positive.clamp(-1, 1), negative.clamp(-1, 1)
