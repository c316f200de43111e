"""Training one arm of a pair: both arms see the same weights, batches and augmentations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._training.augmentation import crop, recolor
from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import Outputs, SegmentationNetwork, full_resolution
from benchmarks._training.recipe import Recipe
from benchmarks._training.teacher import Teacher
from pixcontrast import PixelContrastLoss

SAMPLES = 10
"""Number of steps of a training whose gradient ratio and statistics are recorded."""


def batches(split: Split, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels of each step, on the device of the split.

    The whole run is drawn before it starts, so that no arm can change its own batches.
    """
    generator, device = torch.Generator().manual_seed(seed), split.images.device
    shape = (recipe.steps, recipe.batch_size)
    epochs = math.ceil(math.prod(shape) / len(split))
    order = torch.cat([torch.randperm(len(split), generator=generator) for _ in range(epochs)])
    mirrored = torch.rand(shape, generator=generator) < (0.5 if recipe.flip else 0.0)
    drawn = torch.rand((*shape, 5), generator=generator) if recipe.crops else mirrored
    order, mirrored, drawn = (
        one.to(device) for one in (order[: math.prod(shape)].view(shape), mirrored, drawn)
    )
    for indices, mirror, draws in zip(order, mirrored, drawn, strict=True):
        images, labels = split.network_input(indices), split.labels[indices].long()
        images[mirror] = images[mirror].flip(-1)
        labels[mirror] = labels[mirror].flip(-1)
        if recipe.crops:
            images, labels = crop(images, labels, draws[:, :3])
            images = recolor(images, draws[:, 3:])
        yield images, labels


def all_batches(
    data: SegmentationData, recipe: Recipe, seed: int, teacher: Teacher | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of each step; a teacher doubles them by images that it labels."""
    labelled = batches(data.train, recipe, seed)
    if teacher is None:
        yield from labelled
        return
    if data.unlabelled is None:
        raise ValueError("confidence: expected a recipe with few labels; got one with all")
    others = batches(data.unlabelled, recipe, seed)
    for step, ((images, labels), (more, _)) in enumerate(zip(labelled, others, strict=True)):
        yield teacher.extend(images, labels, more, step)


def main_loss(
    logits: Tensor, labels: Tensor, recipe: Recipe, class_weights: Tensor | None = None
) -> Tensor:
    """Compute the mean cross entropy of a recipe over the pixels that are not ignored.

    The generalized one of a pixel with probability p of its label is (1 − p^q) / q (Zhang and
    Sabuncu, NeurIPS 2018, equation 6).
    """
    if not recipe.generalized:
        return F.cross_entropy(
            logits,
            labels,
            weight=class_weights,
            ignore_index=IGNORE_INDEX,
            label_smoothing=recipe.label_smoothing,
        )
    log_p = -F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    num_pixels = (labels != IGNORE_INDEX).sum().clamp(min=1)
    return -torch.expm1(recipe.generalized * log_p).sum() / (recipe.generalized * num_pixels)


class Losses(NamedTuple):
    """Cross entropy, weighted contrast or None, and the features both depend on."""

    main: Tensor
    contrast: Tensor | None
    features: Tensor

    def total(self) -> Tensor:
        """Return the loss to minimize."""
        return self.main if self.contrast is None else self.main + self.contrast


class Arm:
    """One network in training with its optimizer, contrast loss and random state.

    Args:
        class_weights: of the cross entropy, (num_classes,).
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        num_classes: int,
        recipe: Recipe,
        seed: int,
        class_weights: Tensor | None = None,
    ) -> None:
        self.network = network.train()
        self.recipe = recipe
        self.optimizer = make_optimizer(network, recipe)
        device = next(network.parameters()).device
        self.criterion = (
            recipe.make_criterion(num_classes, network.projection).to(device)
            if recipe.has_contrast
            else None
        )
        # A generator of its own: arms train side by side and must not share the global one.
        self.generator = torch.Generator(device).manual_seed(seed)
        self.class_weights = class_weights

    def losses(self, images: Tensor, labels: Tensor, step: int) -> Losses:
        """Compute the losses of one batch."""
        outputs: Outputs = self.network(images)
        logits = full_resolution(outputs.logits, labels)
        main = main_loss(logits, labels, self.recipe, self.class_weights)
        weight, is_pretraining = self.recipe.contrast_weight(step), self.recipe.is_pretraining(step)
        if self.criterion is None or (self.recipe.pretraining and not is_pretraining):
            return Losses(main, None, outputs.features)
        by_map = self.criterion.projection is None
        emb = outputs.projection(outputs.features) if by_map else outputs.features
        # The classifier has learned nothing yet while the contrast is the only loss.
        predicted = None if is_pretraining else logits
        contrast = self.criterion(emb, labels, predicted, generator=self.generator)
        return Losses(0 * main if is_pretraining else main, weight * contrast, outputs.features)

    def descend(self, loss: Tensor, step: int) -> None:
        """Take one optimizer step, with the learning rate of that step."""
        set_learning_rate(self.optimizer, self.recipe, step)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def train_arm(
    network: SegmentationNetwork,
    data: SegmentationData,
    recipe: Recipe,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> tuple[dict[int, float], list[dict[str, float]]]:
    """Train a network in place; `seed` alone determines batches and augmentations.

    Args:
        network: with its initial weights; left in eval mode.
        advance: called after every step, for a progress bar.

    Returns:
        The gradient ratios of contrast and cross entropy at some steps, and the statistics of the
        contrast at these steps; both are empty without contrast.
    """
    weights = data.train.balancing_weights(data.num_classes) if recipe.class_weights else None
    arm = Arm(network, data.num_classes, recipe, seed, weights)
    ratios: dict[int, float] = {}
    stats: list[dict[str, float]] = []
    teacher = Teacher(network, recipe, seed) if recipe.confidence else None
    for step, batch in enumerate(all_batches(data, recipe, seed, teacher)):
        losses = arm.losses(*batch, step)
        sampled = is_sampled(step, recipe.steps)
        if arm.criterion is not None and losses.contrast is not None and sampled:
            stats.append(stats_of(arm.criterion))
            ratios[step] = gradient_ratio(losses.contrast, losses.main, losses.features)
        arm.descend(losses.total(), step)
        if teacher is not None:
            teacher.follow(network)
        advance()
    network.eval()
    return ratios, stats


def stats_of(criterion: PixelContrastLoss) -> dict[str, float]:
    """Return the statistics of a loss's last call as numbers."""
    stats = {} if criterion.stats is None else criterion.stats._asdict()
    return {name: float(value) for name, value in stats.items() if value is not None}


def gradient_ratio(extra: Tensor, main: Tensor, features: Tensor) -> float:
    """Compute the norm of the gradient of `extra` at `features`, relative to that of `main`.

    Far above 1, the contrast and no longer the cross entropy determines the trunk.
    """
    of_extra, of_main = (
        torch.autograd.grad(loss, features, retain_graph=True)[0].norm().item()
        for loss in (extra, main)
    )
    return of_extra / of_main if of_main > 0 else math.nan


def is_sampled(step: int, steps: int) -> bool:
    """Return True at the end of each of `SAMPLES` equal parts of the run."""
    return step * SAMPLES // steps != (step + 1) * SAMPLES // steps


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make SGD with momentum, or AdamW (fused, which is a sixth of a step faster on a CPU)."""
    parameters, rate, decay = network.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Set the learning rate of a step: the paper's polynomial decay, or half a cosine."""
    done = recipe.progress(step)
    left = (1 - done) ** recipe.decay_power
    if recipe.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * left
