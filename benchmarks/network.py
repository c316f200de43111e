"""The network both arms train: a small U-Net, one trunk under a classifier and a projection."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixcontrast import ProjectionHead

TRUNK_CHANNELS = 48
EMBEDDING_DIM = 64


class Outputs(NamedTuple):
    """Trunk features, logits and unit-length embedding, all at half the image's resolution."""

    features: Tensor
    logits: Tensor
    embedding: Tensor


class SegmentationNetwork(nn.Module):
    """A U-Net of about 0.2 million parameters that ends at half resolution.

    The projection head is there in both arms and computed in both, so that they differ in the
    loss alone: same parameters, same initial weights, same random numbers.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.at_half = nn.Sequential(_convolution(3, 24, stride=2), _convolution(24, 24))
        self.at_quarter = nn.Sequential(_convolution(24, 48, stride=2), _convolution(48, 48))
        self.at_eighth = nn.Sequential(_convolution(48, 64, stride=2), _convolution(64, 64))
        self.to_quarter = _convolution(64 + 48, 48)
        self.to_half = _convolution(48 + 24, TRUNK_CHANNELS)
        self.classifier = nn.Conv2d(TRUNK_CHANNELS, num_classes, 1)
        self.projection = ProjectionHead(TRUNK_CHANNELS, EMBEDDING_DIM)

    def forward(self, images: Tensor) -> Outputs:
        """Take images (B, 3, H, W) to outputs at half their resolution."""
        half = self.at_half(images)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        quarter = self.to_quarter(torch.cat([_resize_as(eighth, quarter), quarter], dim=1))
        features = self.to_half(torch.cat([_resize_as(quarter, half), half], dim=1))
        return Outputs(features, self.classifier(features), self.projection(features))


def full_resolution(logits: Tensor, labels: Tensor) -> Tensor:
    """Bring logits to the resolution of the labels, where they are trained and scored."""
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def nearest_labels(labels: Tensor, maps: Tensor) -> Tensor:
    """Bring labels (B, H, W) to the resolution of maps, as the loss itself does."""
    resized = F.interpolate(labels[:, None].float(), size=maps.shape[-2:], mode="nearest")
    return resized[:, 0].long()


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _resize_as(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
