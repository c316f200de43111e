"""The network both arms train: one trunk under a classifier and a projection."""

from typing import Literal, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._training.recipe import Recipe
from benchmarks._training.trunks import TRUNKS
from pixcontrast import ProjectionHead

Kind = Literal["mlp", "linear"]
WITHOUT_NORM = "mlp without norm"


class Outputs(NamedTuple):
    """Trunk features, logits and unit-length embedding, all at the trunk's resolution."""

    features: Tensor
    logits: Tensor
    embedding: Tensor


class SegmentationNetwork(nn.Module):
    """A trunk, and over its features a classifier and a projection head.

    The projection head is there in both arms and computed in both, so that they differ in the
    loss alone: same parameters, same initial weights, same random numbers.
    """

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        super().__init__()
        self.trunk = TRUNKS[recipe.network]()
        channels = self.trunk.channels
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.projection = make_projection(channels, recipe)

    def forward(self, images: Tensor) -> Outputs:
        """Take images (B, 3, H, W) to outputs at the trunk's resolution."""
        features = self.trunk(images)
        return Outputs(features, self.classifier(features), self.projection(features))


def make_projection(channels: int, recipe: Recipe) -> ProjectionHead:
    """The head of a recipe; the one without a norm starts from the same weights as the other."""
    kind = "mlp" if recipe.projection == WITHOUT_NORM else recipe.projection
    head = ProjectionHead(channels, recipe.dim, kind=cast(Kind, kind))
    if recipe.projection == WITHOUT_NORM:
        layers = (nn.Identity() if isinstance(one, nn.BatchNorm1d) else one for one in head.layers)
        head.layers = nn.Sequential(*layers)
    return head


def full_resolution(logits: Tensor, labels: Tensor) -> Tensor:
    """Bring logits to the resolution of the labels, where they are trained and scored."""
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def nearest_labels(labels: Tensor, maps: Tensor) -> Tensor:
    """Bring labels (B, H, W) to the resolution of maps, as the loss itself does."""
    resized = F.interpolate(labels[:, None].float(), size=maps.shape[-2:], mode="nearest")
    return resized[:, 0].long()
