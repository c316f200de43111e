"""Whether a sample of anchors follows the rule of its sampler."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from benchmarks.reliability.plain import expect
from pixcontrast import HardAnchorSampler

Group = tuple[int, int]
"""Image and class."""


def check_sample(
    sampler: Any, labels: Tensor, preds: Tensor | None, ignore: int, sample: Any
) -> None:
    """Compare a sample of labels (B, P) with the rule in plain Python."""
    rows: list[list[int]] = labels.long().tolist()
    flat = [label for row in rows for label in row]
    groups: dict[Group, list[int]] = {}
    for image, row in enumerate(rows):
        for pixel, label in enumerate(row):
            if label >= 0 and label != ignore:
                groups.setdefault((image, label), []).append(image * len(row) + pixel)
    groups = {g: p for g, p in groups.items() if len(p) >= sampler.min_pixels}
    found = [
        (index, label)
        for index, label in zip(sample.indices.tolist(), sample.labels.tolist(), strict=True)
        if label != ignore
    ]
    size = min(sampler.max_anchors, len(flat))
    expect(
        len(sample.indices) == size and len({index for index, _ in found}) == len(found),
        "the sample has another size, or a pixel twice",
    )
    expect(all(flat[i] == label for i, label in found), "a sampled pixel has another label")
    taken: dict[Group, list[int]] = {}
    for index, label in found:
        taken.setdefault((index // max(len(rows[0]), 1), label), []).append(index)
    expect(
        set(taken) <= set(groups) and len(taken) == min(len(groups), sampler.max_anchors),
        "the sample has other groups",
    )
    views = min(max(sampler.max_anchors // max(len(groups), 1), 1), sampler.max_views)
    is_hard = isinstance(sampler, HardAnchorSampler)
    predicted = preds.long().flatten().tolist() if is_hard and preds is not None else flat
    for group, indices in taken.items():
        members = groups[group]
        expect(len(indices) == min(views, len(members)), "a group gave another number of pixels")
        if is_hard:
            hard = {index for index in members if predicted[index] != flat[index]}
            target, easy = sampler.hard_fraction * len(indices), len(members) - len(hard)
            least, most = (
                min(max(rounded, len(indices) - easy), len(hard))
                for rounded in (math.floor(target), math.ceil(target))
            )
            count = len(hard & set(indices))
            expect(least <= count <= most, "a group gave another number of hard pixels")
