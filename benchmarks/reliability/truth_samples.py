"""Whether a sample of anchors follows the samplers' rule."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from benchmarks.reliability.truth_pixels import seen
from pixcontrast import HardAnchorSampler


def wrong_sample(
    sampler: Any, labels: Tensor, preds: Tensor | None, ignore: int, sample: Any
) -> str | None:
    """What is wrong with a sample of labels (B, P), or None."""
    if not seen(labels):
        return None
    rows = labels.long().tolist()
    looks = isinstance(sampler, HardAnchorSampler) and preds is not None
    predicted = preds.long().tolist() if looks and preds is not None else rows
    groups: dict[tuple[int, int], list[int]] = {}
    for image, row in enumerate(rows):
        for place, label in enumerate(row):
            if label >= 0 and label != ignore:
                groups.setdefault((image, label), []).append(image * len(row) + place)
    groups = {g: p for g, p in groups.items() if len(p) >= sampler.min_pixels}
    flat = [label for row in rows for label in row]
    flat_predicted = [label for row in predicted for label in row]
    size = min(sampler.max_anchors, len(flat))
    found = [
        (index, label)
        for index, label in zip(sample.indices.tolist(), sample.labels.tolist(), strict=True)
        if label != ignore
    ]
    if len(sample.indices) != size or len({index for index, _ in found}) != len(found):
        return "the sample has another size, or a pixel twice"
    if any(flat[index] != label for index, label in found):
        return "a sampled pixel has another label"
    views = min(max(sampler.max_anchors // max(len(groups), 1), 1), sampler.max_views)
    taken: dict[tuple[int, int], list[int]] = {}
    for index, label in found:
        taken.setdefault((index // max(len(rows[0]), 1), label), []).append(index)
    if not set(taken) <= set(groups) or len(taken) != min(len(groups), sampler.max_anchors):
        return "the sample has other groups"
    for group, indices in taken.items():
        if len(indices) != min(views, len(groups[group])):
            return "a group gave another number of pixels"
        if isinstance(sampler, HardAnchorSampler):
            hard = [i for i in groups[group] if flat_predicted[i] != flat[i]]
            wanted = sampler.hard_fraction * len(indices)
            easy = len(groups[group]) - len(hard)
            least, most = (
                min(max(round_(wanted), len(indices) - easy), len(hard))
                for round_ in (math.floor, math.ceil)
            )
            if not least <= len(set(indices) & set(hard)) <= most:
                return "a group gave another number of hard pixels"
    return None
