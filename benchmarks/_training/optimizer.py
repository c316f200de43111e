"""From a recipe to its optimiser, and the learning rate at each step."""

import math

import torch
from torch import nn

from benchmarks._training.recipe import Recipe


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW."""
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


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """The polynomial decay of the paper, or half a cosine; both start at the recipe's rate."""
    done = step / recipe.steps
    left = (1 - done) ** recipe.decay_power
    if recipe.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate * left
