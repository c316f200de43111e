"""The projection head from features to embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixcontrast import _check as check
from pixcontrast._pixels.maps import check_feature_map
from pixcontrast._tensors import product_is_cast, unit_length


class ProjectionHead(nn.Module):
    """1×1 convolutions from features to unit-length embeddings, for 1 to 3 spatial dimensions.

    `kind="mlp"` is the projection head of Wang et al., ICCV 2021, section 3.3: two 1×1 convolutions
    with batch normalization and ReLU between them. `kind="linear"` is one convolution. The head is
    used in training only; inference does not need it. With the `projection=` of a loss, it sees
    only the sampled pixels, as rows (N, in_channels).

    Args:
        in_channels (int): number of feature channels, at least 1.
        dim (int): embedding size D, at least 1. Default: 256.
        hidden (int, optional): number of channels between the two convolutions of `"mlp"`, at least
            1. Default: None, which is `in_channels`.
        kind (str): `"mlp"` or `"linear"`. Default: `"mlp"`.
        norm (str, optional): normalization between the two convolutions of `"mlp"`: `"batch"`, over
            all pixels of the input; `"layer"`, over the channels of each pixel, which does not
            depend on the other pixels; or None, without normalization. `"layer"` suits small
            batches. Not used by `"linear"`. Default: `"batch"`.

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
        norm: Literal["batch", "layer"] | None = "batch",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels = check.check_integer("in_channels", in_channels, 1)
        self.dim = dim = check.check_integer("dim", dim, 1)
        check.check_choice("kind", kind, ("mlp", "linear"))
        self.kind = kind
        is_norm = norm is None or (isinstance(norm, str) and norm in NORMS)
        check.expect(is_norm, "norm", "'batch', 'layer' or None", norm)
        self.norm = norm
        width = in_channels
        if hidden is not None:
            width = check.check_integer("hidden", hidden, 1)
            expected = 'None with kind="linear", which has no hidden layer'
            check.expect(kind != "linear", "hidden", expected, hidden)
        check.check_addressable("in_channels, hidden", (in_channels, width), torch.float64)
        check.check_addressable("hidden, dim", (width, dim), torch.float64)
        layers: list[nn.Module] = []
        if kind == "mlp":
            normalization = nn.Identity() if norm is None else NORMS[norm](width)
            layers += [_Pointwise(in_channels, width, 1), normalization, nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers, _Pointwise(in_channels, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        # Replicas of nn.DataParallel have no parameters(), only attributes.
        weight = self.layers[-1].weight
        assert isinstance(weight, Tensor)
        channels = self.in_channels
        features = check_feature_map("features", features, str(channels), channels)
        check.check_same_device("features", features, "the head", weight)
        if features.dtype != weight.dtype and not product_is_cast(features):
            check.refuse(
                "features",
                f"the dtype of the head, {check.short_dtype(weight.dtype)}",
                check.short_dtype(features.dtype),
                "convert one of them with .to(...), or run inside torch.autocast",
                TypeError,
            )
        pixels = features if features.ndim == 2 else features.flatten(2)
        if pixels.numel() == 0:  # a convolution does not accept maps without a pixel
            # Call the layers nevertheless: under DistributedDataParallel the parameters need a
            # gradient on every rank, and synchronized batch statistics need a call on every rank.
            pixels = pixels.movedim(1, -1).flatten(0, -2)
        embedding = unit_length(self.layers(pixels))
        return embedding.view(features.shape[0], self.dim, *features.shape[2:])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.dim}, kind={self.kind!r}, norm={self.norm!r}"


class _Pointwise(nn.Conv1d):
    """A 1×1 convolution of maps (B, C, P) or rows (N, C). For rows, a matrix product is faster."""

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.ndim == 2:
            return F.linear(pixels, self.weight[:, :, 0], self.bias)
        return super().forward(pixels)


class _LayerNorm(nn.LayerNorm):
    """Layer normalization over the channels of maps (B, C, P) or rows (N, C)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.movedim(1, -1)).movedim(-1, 1)


NORMS = {"batch": nn.BatchNorm1d, "layer": _LayerNorm}
