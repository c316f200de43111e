"""Random crops and colors of a batch of training images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 0.5
"""Of the sides of a crop, relative to the image."""
CONTRAST, BRIGHTNESS = 0.3, 0.5
"""Largest changes: of the factor, and of the constant, where the images have values in [-2, 2]."""


def crop(images: Tensor, labels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Crop a part of each image (B, 3, H, W) and its labels (B, H, W), resized to their size.

    Args:
        draws: (B, 3) random numbers in [0, 1): the size of the crop and its two coordinates.
    """
    scale = SMALLEST + (1 - SMALLEST) * draws[:, 0]
    offsets = (2 * draws[:, 1:] - 1) * (1 - scale)[:, None]
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = offsets
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images, grid, "bilinear", "border", align_corners=False)
    of_labels = F.grid_sample(labels[:, None].float(), grid, "nearest", "border", False)
    return cropped.contiguous(memory_format=torch.channels_last), of_labels[:, 0].long()


def recolor(images: Tensor, draws: Tensor) -> Tensor:
    """Change contrast and brightness of each image by random numbers (B, 2) in [0, 1)."""
    factor, constant = (2 * draws - 1).T[:, :, None, None, None]
    recolored: Tensor = images * (1 + CONTRAST * factor) + BRIGHTNESS * constant
    return recolored
