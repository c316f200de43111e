"""The projection head from features to embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._pixels.maps import as_map
from pixcontrast._tensors import product_is_cast, unit_length


class ProjectionHead(nn.Module):
    """1×1 convolutions from features to unit-length embeddings, for 1 to 3 spatial dimensions.

    `kind="mlp"` is the projection head of Wang et al., ICCV 2021, section 3.3: two 1×1 convolutions
    with batch normalization and ReLU between them. `kind="linear"` is one convolution. The head is
    used in training only; inference does not need it.

    Args:
        in_channels (int): number of feature channels, at least 1.
        dim (int): embedding size D, at least 1. Default: 256.
        hidden (int, optional): number of channels between the two convolutions of `"mlp"`, at least
            1. Default: None, which is `in_channels`.
        kind (str): `"mlp"` or `"linear"`. Default: `"mlp"`.

    Shape:
        - Input: (B, in_channels, *S) with 1 to 3 spatial dimensions, or (N, in_channels).
        - Output: (B, dim, *S), or (N, dim).

    Raises:
        ValueError, TypeError: if an option or the features are invalid. The message names them.

    Example:
        >>> import torch
        >>> from pixcontrast import ProjectionHead
        >>> head = ProjectionHead(16, 8)
        >>> head(torch.randn(2, 16, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        dim: int = 256,
        *,
        hidden: int | None = None,
        kind: Literal["mlp", "linear"] = "mlp",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = check.check_integer("in_channels", in_channels, 1)
        self.dim = dim = check.check_integer("dim", dim, 1)
        check.check_choice("kind", kind, ("mlp", "linear"))
        self.kind = kind
        width = in_channels
        if hidden is not None:
            width = check.check_integer("hidden", hidden, 1)
            expected = 'None with kind="linear", which has no hidden layer'
            check.expect(kind != "linear", "hidden", expected, hidden)
        check.check_addressable("in_channels, hidden", (in_channels, width), torch.float64)
        check.check_addressable("hidden, dim", (width, dim), torch.float64)
        layers: list[nn.Module] = []
        if kind == "mlp":
            layers += [nn.Conv1d(in_channels, width, 1), nn.BatchNorm1d(width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers, nn.Conv1d(in_channels, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        weight = next(self.layers.parameters())
        check.check_feature_map("features", features, str(self.in_channels), self.in_channels)
        check.check_same_device("features", features, "the head", weight)
        if features.dtype != weight.dtype and not product_is_cast(features):
            check.refuse(
                "features",
                f"the dtype of the head, {check.short_dtype(weight.dtype)}",
                check.short_dtype(features.dtype),
                "convert one of them with .to(...), or run inside torch.autocast",
                TypeError,
            )
        feature_map = as_map(features)
        pixels = feature_map.flatten(2)
        if pixels.numel() == 0:  # a convolution does not accept an empty input
            embedding = pixels[:, :1].expand(-1, self.dim, -1)
        else:
            embedding = unit_length(self.layers(pixels))
        if features.ndim == 2:
            return embedding[0].T
        return embedding.view(*embedding.shape[:2], *feature_map.shape[2:])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.dim}, kind={self.kind!r}"
