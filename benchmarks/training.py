"""Training one arm, such that its twin sees the same weights, batches and augmentations."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks.network import EMBEDDING_DIM, Outputs, SegmentationNetwork, full_resolution
from benchmarks.recipe import Recipe
from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss

RATIO_SAMPLES = 10
"""At how many points of a training the two gradients are compared."""


@dataclass(frozen=True)
class GradientRatios:
    """At which steps of a training its two gradients had which ratio at the trunk."""

    steps: list[int]
    values: list[float]


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
        """The images and labels of one step."""
        images = split.network_input(self.indices[step])
        labels = split.labels[self.indices[step]].long()
        mirrored = self.mirrored[step]
        images[mirrored] = images[mirrored].flip(-1)
        labels[mirrored] = labels[mirrored].flip(-1)
        return images, labels


def initial_network(data: SegmentationData, seed: int) -> SegmentationNetwork:
    """Make the network both arms of a seed start from."""
    torch.manual_seed(seed)
    return SegmentationNetwork(data.num_classes)


def train_arm(
    network: SegmentationNetwork,
    data: SegmentationData,
    recipe: Recipe,
    seed: int,
    contrast: bool,
    advance: Callable[[], object] = lambda: None,
) -> GradientRatios:
    """Train `network` as one arm; `seed` alone decides batches and augmentations of both.

    `advance` is called after every step, for a progress bar.
    """
    network.train()
    optimizer = _optimizer(network, recipe)
    plan = Plan.draw(len(data.train), recipe, seed)
    criterion = _criterion(data, recipe) if contrast else None
    # Its own generator: the arms run side by side and must not share the global one.
    generator = torch.Generator().manual_seed(seed)
    steps: list[int] = []
    ratios: list[float] = []
    for step in range(recipe.steps):
        images, labels = plan.batch(data.train, step)
        outputs: Outputs = network(images)
        logits = full_resolution(outputs.logits, labels)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        if criterion is not None:
            extra = recipe.weight * criterion(
                outputs.embedding, labels, logits, generator=generator
            )
            if _is_sampled(step, recipe.steps):
                steps.append(step)
                ratios.append(gradient_ratio(extra, loss, outputs.features))
            loss = loss + extra
        _set_learning_rate(optimizer, recipe, step)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        advance()
    network.eval()
    return GradientRatios(steps, ratios)


def gradient_ratio(extra: Tensor, main: Tensor, features: Tensor) -> float:
    """How many times larger the gradient of `extra` is than that of `main`, at `features`.

    The figure to look at before blaming or praising the contrast: far above 1, it and no longer
    the cross entropy decides what the trunk becomes.
    """
    (of_extra,) = torch.autograd.grad(extra, features, retain_graph=True)
    (of_main,) = torch.autograd.grad(main, features, retain_graph=True)
    main_norm = of_main.norm().item()
    return of_extra.norm().item() / main_norm if main_norm > 0 else math.nan


def _is_sampled(step: int, steps: int) -> bool:
    """True at the end of each of `RATIO_SAMPLES` equal parts of the run."""
    return step * RATIO_SAMPLES // steps != (step + 1) * RATIO_SAMPLES // steps


def _criterion(data: SegmentationData, recipe: Recipe) -> PixelContrastLoss:
    bank = None
    if recipe.bank > 0:
        bank = MemoryBank(
            data.num_classes,
            EMBEDDING_DIM,
            pixel_slots=recipe.bank,
            region_slots=recipe.bank,
            pixels_per_image=recipe.pixels_per_image,
            ignore_index=IGNORE_INDEX,
        )
    return PixelContrastLoss(
        temperature=recipe.temperature,
        base_temperature=recipe.base_temperature,
        ignore_index=IGNORE_INDEX,
        anchor_sampler=HardAnchorSampler(
            max_anchors=recipe.max_anchors, max_views=recipe.max_views
        ),
        bank=bank,
    )


def _optimizer(network: SegmentationNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """The polynomial decay of the paper."""
    left = (1 - step / recipe.steps) ** recipe.decay_power
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * left
