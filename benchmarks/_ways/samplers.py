"""The time of `HardAnchorSampler` beside that of loops over images and classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks._measure.timers import measure
from benchmarks._ways.authors_step import IGNORE_INDEX
from benchmarks._ways.batches import SHAPES, BatchShape, draw_noise, draw_patches
from benchmarks._ways.sampler_loop import sample_in_a_loop, scanned_groups, sorted_groups
from pixcontrast import HardAnchorSampler


def measure_samplers(name: str, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """On patches as a step has them, and on noise, where every class is in every image."""
    shape = _sampled_shape(name)
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


def sampler_runs(
    sampler: HardAnchorSampler, labels: torch.Tensor, preds: torch.Tensor
) -> dict[str, Any]:
    """Ours, the plain loop, and the loop that sorts; all of them sample by the same rule."""
    return {
        "sampler": lambda: sampler(labels, preds, ignore_index=IGNORE_INDEX),
        "loop": lambda: sample_in_a_loop(sampler, scanned_groups(labels, preds), labels),
        "sorted loop": lambda: sample_in_a_loop(sampler, sorted_groups(labels, preds), labels),
    }


def _sampled_shape(name: str) -> BatchShape:
    """8 x 32,768 pixels whatever the classes, but for the small one; labels of that size."""
    like = SHAPES["small" if name == "small" else "cityscapes"]
    return replace(SHAPES[name], images=like.images, height=like.height, width=like.width, stride=1)
