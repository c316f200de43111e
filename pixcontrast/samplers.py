"""Which pixels become anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._dtypes import widest_float
from pixcontrast._groups import MAX_LABEL, DrawnGroups, draw_groups
from pixcontrast._labels import mark_ignored


class AnchorSample(NamedTuple):
    """Sampled pixels, K = min(max_anchors, B·P) of them whatever the labels.

    Attributes:
        indices: (K,) int64, the number of each pixel among the flattened B·P; 0 for padding.
        labels: (K,) int64, their labels; `ignore_index` for padding.
    """

    indices: Tensor
    labels: Tensor


class AnchorSampler(Protocol):
    """What a loss takes as its `anchor_sampler`."""

    def __call__(
        self,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
    ) -> AnchorSample: ...


@dataclass(frozen=True, kw_only=True)
class HardAnchorSampler:
    """Anchors from every class of every image, a share of them from mispredicted pixels.

    Segmentation-aware hard anchor sampling of Wang et al., ICCV 2021, section 3.2. A group is
    the valid pixels of one class in one image. With
    `views = clamp(max_anchors // groups, 1, max_views)` each group gives min(views, its size)
    pixels, without replacement: `hard_fraction` of them from its mispredicted pixels (hard), the
    rest from the correct ones (easy), each side filling up what the other lacks. Where
    hard_fraction × views is no whole number it is rounded up or down by chance, so that the
    average is met. With more groups than `max_anchors`, a random `max_anchors` of the groups
    give one pixel each. A plain immutable object: it holds options and no state.

    Args:
        max_anchors: the most anchors of a batch, at least 1.
        max_views: the most anchors of a group, at least 1. About 0.3% of the pixels of an
            embedding map is a good start.
        hard_fraction: the share of hard pixels aimed at, in [0, 1].
        min_pixels: groups of fewer pixels than this give no anchor; at least 1.

    Call:
        `sampler(labels, preds=None, *, ignore_index=255, generator=None) -> AnchorSample`, with
        labels (B, P) and predicted classes (B, P), integer; without predictions every pixel
        counts as correctly predicted. Labels that are `ignore_index` or negative take no part.

    Raises:
        ValueError, TypeError: for an option out of its range, tensors of the wrong kind, or
            labels above 16,777,215 (looked at on the CPU; elsewhere such pixels are ignored).

    Example:
        >>> import torch
        >>> from pixcontrast import HardAnchorSampler
        >>> labels = torch.tensor([[0, 0, 0, 1, 1, 255]])
        >>> preds = torch.tensor([[0, 1, 0, 1, 1, 0]])
        >>> sample = HardAnchorSampler(max_anchors=4, max_views=2)(labels, preds)
        >>> sample.labels
        tensor([0, 0, 1, 1])
        >>> int(sample.indices[0])  # the one mispredicted pixel of class 0
        1
    """

    max_anchors: int = 1024
    max_views: int = 100
    hard_fraction: float = 0.5
    min_pixels: int = 1

    def __post_init__(self) -> None:
        _check_sizes(self.max_anchors, self.max_views, self.min_pixels)
        check.check_fraction("hard_fraction", self.hard_fraction)
        # A tensor is not multiplied by every number that Python has, as by a Fraction.
        object.__setattr__(self, "hard_fraction", float(self.hard_fraction))

    def __call__(
        self,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
    ) -> AnchorSample:
        marked = _check_and_mark(labels, ignore_index, generator)
        hard = None if preds is None else _check_predictions(preds, labels) != labels
        if labels.numel() == 0:
            return _nothing(labels)
        groups = draw_groups(marked, hard, self.max_anchors, self.min_pixels, generator)
        taken = _taken_of_groups(groups, self.max_anchors, self.max_views)
        device = taken.device
        chance = torch.rand(
            taken.shape, dtype=widest_float(device), generator=generator, device=device
        )
        taken_hard = (self.hard_fraction * taken + chance).to(torch.int64)
        num_easy = groups.size - groups.num_first
        taken_hard = taken_hard.maximum(taken - num_easy).minimum(groups.num_first)
        return _gather(groups, taken, taken_hard, labels, ignore_index, self.max_anchors)


@dataclass(frozen=True, kw_only=True)
class RandomAnchorSampler:
    """Anchors from every class of every image, at random: `HardAnchorSampler` without hardness.

    Args:
        max_anchors: the most anchors of a batch, at least 1.
        max_views: the most anchors of a group (one class in one image), at least 1.
        min_pixels: groups of fewer pixels than this give no anchor; at least 1.

    Call:
        As `HardAnchorSampler`; `preds` are ignored.

    Raises:
        ValueError, TypeError: as `HardAnchorSampler`.

    Example:
        >>> import torch
        >>> from pixcontrast import RandomAnchorSampler
        >>> sampler = RandomAnchorSampler(max_anchors=4, max_views=1)
        >>> sampler(torch.tensor([[0, 0, 1, 255]])).labels  # one pixel a class, and padding
        tensor([  0,   1, 255, 255])
    """

    max_anchors: int = 1024
    max_views: int = 100
    min_pixels: int = 1

    def __post_init__(self) -> None:
        _check_sizes(self.max_anchors, self.max_views, self.min_pixels)

    def __call__(
        self,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
    ) -> AnchorSample:
        marked = _check_and_mark(labels, ignore_index, generator)
        if labels.numel() == 0:
            return _nothing(labels)
        groups = draw_groups(marked, None, self.max_anchors, self.min_pixels, generator)
        taken = _taken_of_groups(groups, self.max_anchors, self.max_views)
        return _gather(
            groups, taken, torch.zeros_like(taken), labels, ignore_index, self.max_anchors
        )


def _taken_of_groups(groups: DrawnGroups, max_anchors: int, max_views: int) -> Tensor:
    """(A,) how many pixels each group gives."""
    num_groups = (groups.size > 0).sum()
    views = (max_anchors // num_groups.clamp(min=1)).clamp(1, max_views)
    return torch.minimum(groups.size, views)


def _gather(
    groups: DrawnGroups,
    taken: Tensor,
    taken_hard: Tensor,
    labels: Tensor,
    ignore_index: int,
    max_anchors: int,
) -> AnchorSample:
    """The first `taken_hard` hard and the first `taken - taken_hard` easy pixels of each group.

    Asked from the other end, so that shapes are fixed: which pixel does each of K anchors hold?
    """
    stop = taken.cumsum(0)
    anchor = torch.arange(min(max_anchors, labels.numel()), device=labels.device)
    group = torch.searchsorted(stop, anchor, right=True).clamp(max=len(stop) - 1)
    rank = anchor - (stop - taken)[group]
    num_hard = taken_hard[group]
    place = rank + torch.where(rank < num_hard, 0, groups.num_first[group] - num_hard)
    padding = anchor >= stop[-1]
    place = (groups.start[group] + place).masked_fill(padding, 0)
    indices = groups.order[place].masked_fill(padding, 0)
    taken_labels = labels.flatten()[indices].to(torch.int64)
    return AnchorSample(indices, taken_labels.masked_fill(padding, ignore_index))


def _nothing(labels: Tensor) -> AnchorSample:
    nothing = torch.zeros(0, dtype=torch.int64, device=labels.device)
    return AnchorSample(nothing, nothing.clone())


def _check_sizes(max_anchors: int, max_views: int, min_pixels: int) -> None:
    check.check_count("max_anchors", max_anchors, at_least=1)
    check.check_count("max_views", max_views, at_least=1)
    check.check_count("min_pixels", min_pixels, at_least=1)


def _check_and_mark(labels: Tensor, ignore_index: int, generator: torch.Generator | None) -> Tensor:
    check.check_ignore_index(ignore_index)
    check.check_sampler_map("labels", labels)
    check.check_generator(generator, labels.device)
    if check.values_can_be_seen(labels):
        check.check_largest_label(labels, ignore_index, MAX_LABEL)
    return mark_ignored(labels, ignore_index, MAX_LABEL + 1)


def _check_predictions(preds: Tensor, labels: Tensor) -> Tensor:
    check.check_sampler_map("preds", preds)
    check.check_same_shape("preds", preds, "labels", labels)
    check.check_same_device("preds", preds, "labels", labels)
    return preds
