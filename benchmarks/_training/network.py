"""The networks of the benchmarks: a trunk under a classifier and a projection head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._training.pretrained import AT_16TH, OUTPUTS, Lite0
from benchmarks._training.recipe import Recipe
from pixcontrast import ProjectionHead

WITHOUT_NORM = "mlp without norm"


class Outputs(NamedTuple):
    """What is contrasted, logits at the trunk's resolution, and the head that projects features."""

    features: Tensor
    logits: Tensor
    projection: ProjectionHead


class SegmentationNetwork(nn.Module):
    """A trunk with a classifier and a projection head on its features.

    Both arms have the projection head, so that they differ only in the loss: same parameters, same
    initial weights, same random numbers.
    """

    def __init__(self, recipe: Recipe, num_classes: int) -> None:
        super().__init__()
        self.trunk = TRUNKS[recipe.network]()
        self.classifier = nn.Conv2d(self.trunk.channels, num_classes, 1)
        without_norm = recipe.projection == WITHOUT_NORM
        kind = cast(Literal["mlp", "linear"], "mlp" if without_norm else recipe.projection)
        self.at_16th = recipe.layer == "1/16"
        if self.at_16th and not isinstance(self.trunk, PretrainedTrunk):
            raise ValueError(f"layer 1/16: expected the network lite0; got {recipe.network}")
        channels = OUTPUTS[AT_16TH] if self.at_16th else self.trunk.channels
        self.projection = ProjectionHead(channels, recipe.dim, kind=kind)
        if without_norm:  # the initial weights are those of the head with a norm
            layers = self.projection.layers
            kept = (nn.Identity() if isinstance(one, nn.BatchNorm1d) else one for one in layers)
            self.projection.layers = nn.Sequential(*kept)

    def forward(self, images: Tensor) -> Outputs:
        """Compute outputs at the trunk's resolution from images (B, 3, H, W)."""
        if isinstance(self.trunk, LargeTrunk):
            stages = self.trunk.stage_maps(images)
            features = self.trunk.merge(stages)
            contrasted = self.contrasted(stages, features)
        else:
            contrasted = features = self.trunk(images)
        return Outputs(contrasted, self.classifier(features), self.projection)

    def contrasted(self, stages: list[Tensor], features: Tensor) -> Tensor:
        """Return what the contrast is applied to: the encoder's map at 1/16, or the features."""
        return stages[list(OUTPUTS).index(AT_16TH)] if self.at_16th else features


class SmallTrunk(nn.Module):
    """A U-Net of about 0.2 million parameters that ends at half resolution."""

    channels = 48

    def __init__(self) -> None:
        super().__init__()
        self.at_half = nn.Sequential(_convolution(3, 24, stride=2), _convolution(24, 24))
        self.at_quarter = nn.Sequential(_convolution(24, 48, stride=2), _convolution(48, 48))
        self.at_eighth = nn.Sequential(_convolution(48, 64, stride=2), _convolution(64, 64))
        self.to_quarter = _convolution(64 + 48, 48)
        self.to_half = _convolution(48 + 24, self.channels)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, 48, H / 2, W / 2) from images (B, 3, H, W)."""
        half = self.at_half(images)
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        quarter = self.to_quarter(torch.cat([_resize_as(eighth, quarter), quarter], dim=1))
        features: Tensor = self.to_half(torch.cat([_resize_as(quarter, half), half], dim=1))
        return features


class LargeTrunk(nn.Module):
    """Residual stages down to 1/32 resolution, merged at 1/4: 6.7 million parameters.

    The shape of the encoders that pixel contrast is used with, at a size that trains from scratch
    on a few hundred images.
    """

    channels = 128
    widths = (48, 96, 192, 384)

    def __init__(self) -> None:
        super().__init__()
        first = self.widths[0]
        self.stem = nn.Sequential(_convolution(3, 24, stride=2), _convolution(24, first, stride=2))
        inputs = (first, *self.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_Residual(before, width, 1 if before == width else 2), _Residual(width))
            for before, width in zip(inputs, self.widths, strict=True)
        )
        self._add_decoder(self.widths)

    def _add_decoder(self, widths: tuple[int, ...]) -> None:
        self.across = nn.ModuleList(nn.Conv2d(width, self.channels, 1) for width in widths)
        self.smooth = nn.Sequential(
            _convolution(self.channels, self.channels), _convolution(self.channels, self.channels)
        )

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the stages, at 1/4 to 1/32 resolution."""
        maps: list[Tensor] = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def merge(self, maps: list[Tensor]) -> Tensor:
        """Merge the maps of the stages to features (B, channels, H / 4, W / 4)."""
        sides = [layer(found) for layer, found in zip(self.across, maps, strict=True)]
        merged = sides[-1]
        for side in reversed(sides[:-1]):
            merged = side + _resize_as(merged, side)
        features: Tensor = self.smooth(merged)
        return features


class WideTrunk(LargeTrunk):
    """The stages of the large trunk, joined at 1/4 to the 720 channels of HRNet-W48."""

    channels = 720

    def __init__(self) -> None:
        super().__init__()
        self.across = nn.ModuleList()
        self.smooth = nn.Sequential()

    def merge(self, maps: list[Tensor]) -> Tensor:
        """Concatenate the maps of the stages at 1/4 resolution."""
        first, *others = maps
        return torch.cat([first, *(_resize_as(other, first) for other in others)], dim=1)


class PretrainedTrunk(LargeTrunk):
    """EfficientNet-Lite0 with ImageNet weights, merged at 1/4 as the large trunk is."""

    channels = 64

    def __init__(self, from_scratch: bool = False) -> None:
        nn.Module.__init__(self)
        self.encoder = Lite0()
        if not from_scratch:
            self.encoder.load_imagenet()
        self._add_decoder(tuple(OUTPUTS.values()))

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of the stages, at 1/4 to 1/32 resolution."""
        # The range of the pretraining is [-1, 1], that of `Split.network_input` [-2, 2].
        maps: list[Tensor] = self.encoder(images / 2)
        return maps


TRUNKS: dict[str, Callable[[], SmallTrunk | LargeTrunk]] = {
    "small": SmallTrunk,
    "large": LargeTrunk,
    "wide": WideTrunk,
    "lite0": PretrainedTrunk,
    "lite0 from scratch": partial(PretrainedTrunk, from_scratch=True),
}


def full_resolution(logits: Tensor, labels: Tensor) -> Tensor:
    """Resize logits to the resolution of the labels, where the network is trained and scored."""
    return _resize_as(logits, labels)


class _Residual(nn.Module):
    """Two convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, in_channels: int, out_channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.body = nn.Sequential(
            _convolution(in_channels, out_channels, stride=stride),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.shortcut(maps))


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _resize_as(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
