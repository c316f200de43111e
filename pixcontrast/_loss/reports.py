"""Statistics of the calls of a loss, computed on request, and its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._tensors import IGNORED, unit_length, without_autocast

MAX_CLASSES = 256
"""Number of classes that are counted if the number of classes is unknown."""
MAX_CALLS_WITHOUT_NEGATIVE = 10
DEFAULT_IGNORE_INDEX = 255


class Stats(NamedTuple):
    """Statistics of the last call of a loss; see the attribute `stats` of `PixelContrastLoss`."""

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
    """Data of a call, from which its statistics are computed. Labels are marked."""

    labels: Tensor  # of all pixels, (B, P)
    indices: Tensor  # flat indices of the sampled pixels, (K,)
    sampled: Tensor  # labels of the sampled pixels, `IGNORED` for padding, (K,)
    preds: Tensor | None  # predicted classes of the sampled pixels, (K,)
    anchors: Tensor  # embeddings of the sampled pixels, detached, (K, D)
    has_positive: Tensor  # (K,)
    batch_labels: Tensor | None  # labels of the contrast entries from the batch, (n,)
    bank_entries: Tensor | None  # numbers of valid entries of the contrasted queues
    written: Tensor | None  # numbers of written slots after the call
    slots: int  # number of slots of the bank
    num_classes: int  # number of classes that are counted


@torch.no_grad()
def compute_stats(call: Call) -> Stats:
    """Compute the statistics of a call. The host does not wait for a device."""
    zero = call.sampled.new_zeros(())
    valid = call.sampled != IGNORED
    hard = zero if call.preds is None else (valid & (call.preds != call.sampled)).sum()
    groups, skipped, classes = count_groups(call)
    positive, negative = similarities(call.anchors, call.sampled, call.num_classes)
    of_batch = zero if call.batch_labels is None else (call.batch_labels != IGNORED).sum()
    of_bank, written = (
        zero if counts is None else counts.sum() for counts in (call.bank_entries, call.written)
    )
    return Stats(
        anchors=call.has_positive.sum(),
        entries=of_batch + of_bank,
        classes=classes,
        groups=groups,
        groups_skipped=skipped,
        hard_share=hard / valid.sum().clamp(min=1),
        positive_similarity=positive,
        negative_similarity=negative,
        bank_occupancy=written.float() / max(1, call.slots),
    )


def count_groups(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Count the groups, the groups without a sampled pixel, and the classes with one."""
    num_images, num_pixels = call.labels.shape
    images = torch.arange(num_images, device=call.labels.device)[:, None]
    sampled_images = call.indices // max(1, num_pixels)
    present, has_sample = (
        _groups_of(images, call.labels, num_images, call.num_classes),
        _groups_of(sampled_images, call.sampled, num_images, call.num_classes),
    )
    return present.sum(), (present & ~has_sample).sum(), has_sample.any(dim=0).sum()


def _groups_of(images: Tensor, labels: Tensor, num_images: int, num_classes: int) -> Tensor:
    """Return which groups (B, C) have a pixel. Labels outside [0, C) are left out."""
    counts = (labels >= 0) & (labels < num_classes)
    groups = images * (num_classes + 1) + torch.where(counts, labels, num_classes)
    found = labels.new_zeros(num_images * (num_classes + 1), dtype=torch.bool)
    found.scatter_(0, groups.flatten(), True)
    return found.view(num_images, num_classes + 1)[:, :num_classes]


def similarities(anchors: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the mean cosine similarity of pairs of the same class, and of different classes.

    Computed from Σ_c |Σ_{i∈c} a_i|² and |Σ_i a_i|², without a K×K matrix. Labels (K,) outside
    [0, `num_classes`) do not count.
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


class LabelWarnings:
    """Warnings about labels that leave nothing to contrast, each given once for a loss.

    Code compiled by torch.compile gives no warning.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._calls_without_negative = 0

    def see_logits(self, preds: Tensor | None, ignore_index: int) -> None:
        """Warn if 255 is both a class and the default `ignore_index`."""
        if torch.compiler.is_compiling() or preds is None or not preds.is_floating_point():
            return
        if ignore_index == DEFAULT_IGNORE_INDEX and preds.shape[1] > DEFAULT_IGNORE_INDEX:
            self._warn(
                f"preds: logits of {preds.shape[1]} classes beside the default ignore_index=255: "
                f"pixels of class 255 are ignored (pass another ignore_index, for example -1)"
            )

    def see_labels(
        self, anchors: Tensor, contrast: Sequence[Tensor | None], images: Tensor | None
    ) -> None:
        """Warn if no anchor had a negative in several calls in a row. Only on the CPU.

        `contrast` has the labels of each contrast tensor, None for the anchors. Labels are marked.
        """
        if not check.values_can_be_seen(anchors) or anchors.numel() == 0:
            return
        if _any_negative(anchors, contrast, images):
            self._calls_without_negative = 0
            return
        self._calls_without_negative += 1
        if self._calls_without_negative == MAX_CALLS_WITHOUT_NEGATIVE:
            self._warn(
                f"labels: no anchor had a negative in {MAX_CALLS_WITHOUT_NEGATIVE} calls in a row, "
                f"so the loss is constant (are there labels of one class only? In a mask of 0 and "
                f"255, the value 255 is ignored by default: pass (mask > 0) as labels)"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=6)


def _any_negative(
    anchors: Tensor, contrast: Sequence[Tensor | None], images: Tensor | None
) -> bool:
    """Return whether an anchor and a contrast entry have different labels.

    With `images`, an anchor is contrasted with those of the anchors that are of its own image.
    """
    is_valid = anchors != IGNORED
    valid = anchors[is_valid]
    if valid.numel() == 0:
        return False
    low, high = (int(bound) for bound in valid.aminmax())
    for labels in contrast:
        if labels is None:
            if low != high and (images is None or _any_differ(valid, images[is_valid])):
                return True
        elif bool(((labels != IGNORED) & ((labels != low) | (low != high))).any()):
            return True
    return False


def _any_differ(labels: Tensor, images: Tensor) -> bool:
    """Return whether two labels of one image differ."""
    order = images.argsort()
    labels, images = labels[order], images[order]
    return bool(((labels[1:] != labels[:-1]) & (images[1:] == images[:-1])).any())
