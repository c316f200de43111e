"""The sampler as one would write it by hand: a loop over images and classes, in two ways."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._ways.authors_step import IGNORE_INDEX
from pixcontrast import AnchorSample, HardAnchorSampler

Groups = Iterator[tuple[Tensor, Tensor]]
"""The numbers, among all B·P, of the hard and of the easy pixels of each class of each image."""


def scanned_groups(labels: Tensor, preds: Tensor) -> Groups:
    """Look through the image once for each of its classes: the plain loop. (B, P) both."""
    for first, of_image, predicted in _images(labels, preds):
        is_hard = of_image != predicted
        for label in torch.unique(of_image).tolist():
            if label != IGNORE_INDEX:
                members = (of_image == label).nonzero().squeeze(1)
                hard = is_hard[members]
                members = members + first
                yield members[hard], members[~hard]


def sorted_groups(labels: Tensor, preds: Tensor) -> Groups:
    """Sort each image once and cut it where the class changes: the loop of one who has timed it."""
    for first, of_image, predicted in _images(labels, preds):
        # Labels count from -1: the key 2·label + 1 of its easy pixels is odd, also of those.
        key, order = (2 * of_image + (of_image == predicted)).sort()
        keys, sizes = torch.unique_consecutive(key, return_counts=True)
        parts = dict(zip(keys.tolist(), torch.split(order + first, sizes.tolist()), strict=True))
        nothing = order[:0]
        for label in sorted({part >> 1 for part in parts} - {IGNORE_INDEX}):
            yield parts.get(2 * label, nothing), parts.get(2 * label + 1, nothing)


def sample_in_a_loop(options: HardAnchorSampler, found: Groups, labels: Tensor) -> AnchorSample:
    """What a sampler of these options takes of labels (B, P), one group after the other."""
    groups = [(hard, easy) for hard, easy in found if len(hard) + len(easy) >= options.min_pixels]
    views = min(max(options.max_anchors // max(len(groups), 1), 1), options.max_views)
    if len(groups) > options.max_anchors:
        winners = torch.randperm(len(groups))[: options.max_anchors].tolist()
        groups = [groups[number] for number in sorted(winners)]
    chosen: list[Tensor] = [labels.new_empty(0)]
    for hard, easy in groups:
        wanted = min(views, len(hard) + len(easy))
        num_hard = math.floor(options.hard_fraction * wanted + float(torch.rand(())))
        num_hard = min(max(num_hard, wanted - len(easy)), len(hard))
        chosen += [_some(hard, num_hard), _some(easy, wanted - num_hard)]
    indices = torch.cat(chosen)
    padding = min(options.max_anchors, labels.numel()) - len(indices)
    sampled = labels.flatten()[indices]
    return AnchorSample(
        torch.cat((indices, indices.new_zeros(padding))),
        torch.cat((sampled, sampled.new_full((padding,), IGNORE_INDEX))),
    )


def _images(labels: Tensor, preds: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of the first pixel of each image, its labels and its predictions."""
    starts = range(0, labels.numel(), labels.shape[1])
    yield from zip(starts, labels, preds, strict=True)


def _some(pixels: Tensor, count: int) -> Tensor:
    """`count` of them at random, each at most once."""
    order = torch.randperm(len(pixels), device=pixels.device)
    return pixels[order[:count]]
