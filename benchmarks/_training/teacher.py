"""Self-training: a moving average of the student labels the images without labels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks._training.augmentation import recolor
from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.network import SegmentationNetwork, full_resolution
from benchmarks._training.recipe import Recipe

MOMENTUM = 0.98
WARM_UP = 0.2
"""Fraction of the run before which the teacher is not accurate enough."""
NOISE = 0.1
"""Standard deviation of the noise on the student's images, which have values in [-2, 2]."""


class Teacher:
    """A mean teacher, as in the recipe docs/recipes/self_training.py.

    Args:
        network: the student.
        recipe: its `confidence` is the softmax from which a pixel gets the predicted class.
        seed: of the changes of the student's images, which are the same for every arm.
    """

    def __init__(self, network: SegmentationNetwork, recipe: Recipe, seed: int) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.recipe = recipe
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def extend(
        self, images: Tensor, labels: Tensor, unlabelled: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return a batch with the unlabelled images and their pseudo-labels added."""
        if step < WARM_UP * self.recipe.steps:
            return images, labels
        logits = full_resolution(self.network(unlabelled).logits, labels)
        confidence, found = logits.softmax(1).max(1)
        pseudo_labels = found.masked_fill(confidence < self.recipe.confidence, IGNORE_INDEX)
        draws = torch.rand(len(unlabelled), 2, generator=self.generator)
        noise = NOISE * torch.randn(unlabelled.shape, generator=self.generator)
        changed = recolor(unlabelled, draws.to(images.device)) + noise.to(images.device)
        extended = torch.cat([images, changed]).contiguous(memory_format=torch.channels_last)
        return extended, torch.cat([labels, pseudo_labels])

    @torch.no_grad()
    def follow(self, student: SegmentationNetwork) -> None:
        """Move every parameter and statistic towards those of the student."""
        own, others = self.network.state_dict().values(), student.state_dict().values()
        for old, new in zip(own, others, strict=True):
            old.copy_(old.lerp(new, 1 - MOMENTUM) if old.is_floating_point() else new)
