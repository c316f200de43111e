"""Training one arm, such that its twin sees the same weights, batches and augmentations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._training.criterion import contrast_weight, make_criterion
from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import Outputs, SegmentationNetwork, full_resolution
from benchmarks._training.optimizer import make_optimizer, set_learning_rate
from benchmarks._training.recipe import Recipe
from pixcontrast import PixelContrastLoss

RATIO_SAMPLES = 10
"""At how many points of a training the two gradients are compared."""

Observer = Callable[[int, PixelContrastLoss], object]


@dataclass(frozen=True)
class GradientRatios:
    """At which steps of a training its two gradients had which ratio at the trunk."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Which images each step takes, and which of them are mirrored: (steps, batch) both."""

    indices: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, images: int, recipe: Recipe, seed: int) -> "Plan":
        """Draw the whole run beforehand, so that nothing an arm does can change what it sees."""
        generator = torch.Generator().manual_seed(seed)
        wanted = recipe.steps * recipe.batch_size
        epochs = math.ceil(wanted / images)
        order = torch.cat([torch.randperm(images, generator=generator) for _ in range(epochs)])
        shape = (recipe.steps, recipe.batch_size)
        mirrored = torch.rand(shape, generator=generator) < (0.5 if recipe.flip else 0.0)
        return cls(order[:wanted].view(shape), mirrored)

    def batch(self, split: Split, step: int) -> tuple[Tensor, Tensor]:
        """The images and labels of one step, on the device of the split."""
        device = split.images.device
        indices = self.indices[step].to(device)
        images = split.network_input(indices)
        labels = split.labels[indices].long()
        mirrored = self.mirrored[step].to(device)
        images[mirrored] = images[mirrored].flip(-1)
        labels[mirrored] = labels[mirrored].flip(-1)
        return images, labels


class Losses(NamedTuple):
    """Cross entropy, weighted contrast where there is one, and the features both come from."""

    main: Tensor
    contrast: Tensor | None
    features: Tensor

    def total(self) -> Tensor:
        """What is minimised."""
        return self.main if self.contrast is None else self.main + self.contrast


class Arm:
    """One network in training: its optimiser, its loss, its randomness."""

    def __init__(
        self,
        network: SegmentationNetwork,
        num_classes: int,
        recipe: Recipe,
        seed: int,
        contrast: bool,
    ) -> None:
        self.network = network.train()
        self.recipe = recipe
        self.optimizer = make_optimizer(network, recipe)
        device = next(network.parameters()).device
        self.criterion = make_criterion(recipe, num_classes).to(device) if contrast else None
        # Its own generator: the arms run side by side and must not share the global one.
        self.generator = torch.Generator(device).manual_seed(seed)

    def losses(self, images: Tensor, labels: Tensor, step: int) -> Losses:
        """What the images of one step come to."""
        outputs: Outputs = self.network(images)
        logits = full_resolution(outputs.logits, labels)
        main = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        if self.criterion is None:
            return Losses(main, None, outputs.features)
        contrast = self.criterion(outputs.embedding, labels, logits, generator=self.generator)
        weight = contrast_weight(self.recipe, step)
        return Losses(main, weight * contrast, outputs.features)

    def descend(self, loss: Tensor, step: int) -> None:
        """One step of the optimiser, at the learning rate of that step."""
        set_learning_rate(self.optimizer, self.recipe, step)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def initial_network(data: SegmentationData, recipe: Recipe, seed: int) -> SegmentationNetwork:
    """Make the network both arms of a seed start from."""
    torch.manual_seed(seed)
    return SegmentationNetwork(recipe, data.num_classes)


def train_arm(
    network: SegmentationNetwork,
    data: SegmentationData,
    recipe: Recipe,
    seed: int,
    contrast: bool,
    advance: Callable[[], object] = lambda: None,
    observe: Observer = lambda step, criterion: None,
) -> GradientRatios:
    """Train `network` as one arm; `seed` alone decides batches and augmentations of both.

    `advance` is called after every step, for a progress bar; `observe` after every loss with
    contrast, for whoever wants to look at it or at its bank.
    """
    arm = Arm(network, data.num_classes, recipe, seed, contrast)
    plan = Plan.draw(len(data.train), recipe, seed)
    ratios = GradientRatios()
    for step in range(recipe.steps):
        losses = arm.losses(*plan.batch(data.train, step), step)
        if arm.criterion is not None and losses.contrast is not None:
            observe(step, arm.criterion)
            if is_sampled(step, recipe.steps):
                ratios.steps.append(step)
                ratios.values.append(gradient_ratio(losses.contrast, losses.main, losses.features))
        arm.descend(losses.total(), step)
        advance()
    network.eval()
    return ratios


def gradient_ratio(extra: Tensor, main: Tensor, features: Tensor) -> float:
    """How many times larger the gradient of `extra` is than that of `main`, at `features`.

    The figure to look at before blaming or praising the contrast: far above 1, it and no longer
    the cross entropy decides what the trunk becomes.
    """
    (of_extra,) = torch.autograd.grad(extra, features, retain_graph=True)
    (of_main,) = torch.autograd.grad(main, features, retain_graph=True)
    main_norm = of_main.norm().item()
    return of_extra.norm().item() / main_norm if main_norm > 0 else math.nan


def is_sampled(step: int, steps: int) -> bool:
    """True at the end of each of `RATIO_SAMPLES` equal parts of the run."""
    return step * RATIO_SAMPLES // steps != (step + 1) * RATIO_SAMPLES // steps
