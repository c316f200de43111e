"""Training one arm of a pair: both arms see the same weights, batches and augmentations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._training.criterion import contrast_weight, make_criterion
from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import Outputs, SegmentationNetwork, full_resolution
from benchmarks._training.recipe import Recipe
from pixcontrast import PixelContrastLoss

RATIO_SAMPLES = 10
"""Number of steps of a training at which the two gradients are compared."""

Observer = Callable[[int, PixelContrastLoss], object]


class Plan(NamedTuple):
    """The image indices of each step and which of them are mirrored, both (steps, batch)."""

    indices: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, images: int, recipe: Recipe, seed: int) -> Plan:
        """Draw the whole run before it starts, so that no arm can change its own batches."""
        generator = torch.Generator().manual_seed(seed)
        total = recipe.steps * recipe.batch_size
        epochs = math.ceil(total / images)
        order = torch.cat([torch.randperm(images, generator=generator) for _ in range(epochs)])
        shape = (recipe.steps, recipe.batch_size)
        mirrored = torch.rand(shape, generator=generator) < (0.5 if recipe.flip else 0.0)
        return cls(order[:total].view(shape), mirrored)

    def batch(self, split: Split, step: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of one step, on the device of the split."""
        device = split.images.device
        indices = self.indices[step].to(device)
        images = split.network_input(indices)
        labels = split.labels[indices].long()
        mirrored = self.mirrored[step].to(device)
        images[mirrored] = images[mirrored].flip(-1)
        labels[mirrored] = labels[mirrored].flip(-1)
        return images, labels


class Losses(NamedTuple):
    """Cross entropy, weighted contrast or None, and the features both depend on."""

    main: Tensor
    contrast: Tensor | None
    features: Tensor

    def total(self) -> Tensor:
        """Return the loss to minimize."""
        return self.main if self.contrast is None else self.main + self.contrast


class Arm:
    """One network in training with its optimizer, contrast loss and random state."""

    def __init__(
        self, network: SegmentationNetwork, num_classes: int, recipe: Recipe, seed: int
    ) -> None:
        self.network = network.train()
        self.recipe = recipe
        self.optimizer = make_optimizer(network, recipe)
        device = next(network.parameters()).device
        self.criterion = (
            make_criterion(recipe, num_classes).to(device) if recipe.has_contrast else None
        )
        # A generator of its own: arms train side by side and must not share the global one.
        self.generator = torch.Generator(device).manual_seed(seed)

    def losses(self, images: Tensor, labels: Tensor, step: int) -> Losses:
        """Compute the losses of one batch."""
        outputs: Outputs = self.network(images)
        logits = full_resolution(outputs.logits, labels)
        main = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        if self.criterion is None:
            return Losses(main, None, outputs.features)
        contrast = self.criterion(outputs.embedding, labels, logits, generator=self.generator)
        weight = contrast_weight(self.recipe, step)
        return Losses(main, weight * contrast, outputs.features)

    def descend(self, loss: Tensor, step: int) -> None:
        """Take one optimizer step, with the learning rate of that step."""
        set_learning_rate(self.optimizer, self.recipe, step)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def initial_network(data: SegmentationData, recipe: Recipe, seed: int) -> SegmentationNetwork:
    """Make the network that both arms of a seed start from."""
    torch.manual_seed(seed)
    return SegmentationNetwork(recipe, data.num_classes)


def train_arm(
    network: SegmentationNetwork,
    data: SegmentationData,
    recipe: Recipe,
    seed: int,
    advance: Callable[[], object] = lambda: None,
    observe: Observer = lambda step, criterion: None,
) -> dict[int, float]:
    """Train a network in place; `seed` alone determines batches and augmentations.

    Args:
        network: from `initial_network`; left in eval mode.
        advance: called after every step, for a progress bar.
        observe: called after every contrast loss, with the step and the loss.

    Returns:
        The gradient ratios of contrast and cross entropy at some steps; empty without contrast.
    """
    arm = Arm(network, data.num_classes, recipe, seed)
    plan = Plan.draw(len(data.train), recipe, seed)
    ratios: dict[int, float] = {}
    for step in range(recipe.steps):
        losses = arm.losses(*plan.batch(data.train, step), step)
        if arm.criterion is not None and losses.contrast is not None:
            observe(step, arm.criterion)
            if is_sampled(step, recipe.steps):
                ratios[step] = gradient_ratio(losses.contrast, losses.main, losses.features)
        arm.descend(losses.total(), step)
        advance()
    network.eval()
    return ratios


def gradient_ratio(extra: Tensor, main: Tensor, features: Tensor) -> float:
    """Compute the norm of the gradient of `extra` at `features`, relative to that of `main`.

    Far above 1, the contrast and no longer the cross entropy determines the trunk.
    """
    (of_extra,) = torch.autograd.grad(extra, features, retain_graph=True)
    (of_main,) = torch.autograd.grad(main, features, retain_graph=True)
    main_norm = of_main.norm().item()
    return of_extra.norm().item() / main_norm if main_norm > 0 else math.nan


def is_sampled(step: int, steps: int) -> bool:
    """Return True at the end of each of `RATIO_SAMPLES` equal parts of the run."""
    return step * RATIO_SAMPLES // steps != (step + 1) * RATIO_SAMPLES // steps


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make SGD with momentum, or AdamW."""
    parameters, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Set the learning rate of a step: the paper's polynomial decay, or half a cosine."""
    done = step / recipe.steps
    left = (1 - done) ** recipe.decay_power
    if recipe.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * left
