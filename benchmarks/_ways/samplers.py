"""The time of `HardAnchorSampler` beside loops over images and classes, as written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure.timers import measure
from benchmarks._ways.authors_step import IGNORE_INDEX
from benchmarks._ways.batches import SHAPES, draw_noise, draw_patches
from pixcontrast import AnchorSample, HardAnchorSampler

Groups = Iterator[tuple[Tensor, Tensor]]
"""The numbers, among all B·P, of the hard and of the easy pixels of each class of each image."""


def measure_samplers(name: str, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Time them on noise, where every class is in every image, and on patches as in a step.

    On 8 × 32,768 pixels whatever the classes, but for the small shape.
    """
    like = SHAPES["small" if name == "small" else "cityscapes"]
    shape = replace(
        SHAPES[name], images=like.images, height=like.height, width=like.width, stride=1
    )
    sampler = HardAnchorSampler(max_anchors=shape.max_anchors, max_views=shape.max_views)
    rows: list[dict[str, Any]] = []
    for kind, draw in (("noise", draw_noise), ("patches", draw_patches)):
        torch.manual_seed(0)
        drawn = draw(shape, torch.Generator().manual_seed(0))
        labels, preds = (classes.flatten(1).to(device) for classes in drawn)
        runs = sampler_runs(sampler, labels, preds)
        rows.append(
            {
                "name": name,
                "labels": kind,
                "images": shape.images,
                "pixels": labels.shape[1],
                "classes": shape.num_classes,
                "groups": len(list(scanned_groups(labels, preds))),
                "measured": measure(runs, repeats, device, references=("sampler",), strict=True),
            }
        )
    return rows


def sampler_runs(sampler: HardAnchorSampler, labels: Tensor, preds: Tensor) -> dict[str, Any]:
    """Return ours, the plain loop, and the loop that sorts; all sample by the same rule."""
    return {
        "sampler": lambda: sampler(labels, preds, ignore_index=IGNORE_INDEX),
        "loop": lambda: sample_in_a_loop(sampler, scanned_groups(labels, preds), labels),
        "sorted loop": lambda: sample_in_a_loop(sampler, sorted_groups(labels, preds), labels),
    }


def scanned_groups(labels: Tensor, preds: Tensor) -> Groups:
    """Look through the image once for each of its classes: the plain loop. (B, P) both."""
    for image, (of_image, predicted) in enumerate(zip(labels, preds, strict=True)):
        is_hard = of_image != predicted
        for label in torch.unique(of_image).tolist():
            if label != IGNORE_INDEX:
                members = (of_image == label).nonzero().squeeze(1)
                hard = is_hard[members]
                members = members + image * labels.shape[1]
                yield members[hard], members[~hard]


def sorted_groups(labels: Tensor, preds: Tensor) -> Groups:
    """Sort each image once and cut it where the class changes: the loop of one who has timed it."""
    for image, (of_image, predicted) in enumerate(zip(labels, preds, strict=True)):
        # Labels count from -1: the key 2·label + 1 of its easy pixels is odd, also of those.
        key, order = (2 * of_image + (of_image == predicted)).sort()
        keys, sizes = torch.unique_consecutive(key, return_counts=True)
        pixels = torch.split(order + image * labels.shape[1], sizes.tolist())
        parts = dict(zip(keys.tolist(), pixels, strict=True))
        nothing = order[:0]
        for label in sorted({part >> 1 for part in parts} - {IGNORE_INDEX}):
            yield parts.get(2 * label, nothing), parts.get(2 * label + 1, nothing)


def sample_in_a_loop(options: HardAnchorSampler, found: Groups, labels: Tensor) -> AnchorSample:
    """Return what a sampler of these options takes of labels (B, P), one group after the other."""
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
        for pixels, count in ((hard, num_hard), (easy, wanted - num_hard)):
            chosen.append(pixels[torch.randperm(len(pixels), device=pixels.device)[:count]])
    indices = torch.cat(chosen)
    padding = min(options.max_anchors, labels.numel()) - len(indices)
    sampled = labels.flatten()[indices]
    return AnchorSample(
        torch.cat((indices, indices.new_zeros(padding))),
        torch.cat((sampled, sampled.new_full((padding,), IGNORE_INDEX))),
    )
