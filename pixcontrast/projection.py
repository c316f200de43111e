"""The head that turns features into embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._pixels import as_images, unit_length


class ProjectionHead(nn.Module):
    """1×1 convolutions from features to unit-length embeddings, for any number of dimensions.

    `kind="mlp"` is the projection head of Wang et al., ICCV 2021, section 3.3: two 1×1
    convolutions with batch normalisation and a ReLU between them. `kind="linear"` is a single
    one. Used in training alone; inference does not need it.

    Args:
        in_channels: channels of the features, at least 1.
        dim: D, the size of the embeddings, at least 1.
        hidden: channels between the two convolutions; None: `in_channels`. Of `"mlp"` alone.
        kind: `"mlp"` or `"linear"`.

    Shape:
        (B, in_channels, *S) with 1 to 3 spatial dimensions to (B, dim, *S); (N, in_channels) to
        (N, dim).

    Raises:
        ValueError, TypeError: for options or features that do not fit; the message names them.

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
        check.check_count("in_channels", in_channels, at_least=1)
        check.check_count("dim", dim, at_least=1)
        check.check_choice("kind", kind, ("mlp", "linear"))
        if hidden is not None:
            check.check_count("hidden", hidden, at_least=1)
            if kind == "linear":
                raise ValueError(
                    'hidden: expected None with kind="linear", which has no hidden '
                    f"layer; got {hidden}"
                )
        width = in_channels if kind == "linear" or hidden is None else hidden
        for names, sizes in (
            ("in_channels, hidden", (in_channels, width)),
            ("hidden, dim", (width, dim)),
        ):
            check.check_addressable(names, sizes, torch.float64)
        self.in_channels = in_channels
        self.dim = dim
        self.kind = kind
        layers: list[nn.Module] = []
        if kind == "mlp":
            layers += [nn.Conv1d(in_channels, width, 1), nn.BatchNorm1d(width), nn.ReLU()]
            in_channels = width
        self.layers = nn.Sequential(*layers, nn.Conv1d(in_channels, dim, 1))

    def forward(self, features: Tensor) -> Tensor:
        weight = next(self.layers.parameters())
        check.check_features(features, self.in_channels)
        check.check_same_device("features", features, "the head", weight)
        check.check_product_dtype("features", features, "the head", weight)
        images = as_images(features)
        pixels = images.flatten(2)
        if pixels.numel() == 0:  # which a convolution refuses
            embedding = pixels[:, :1].expand(-1, self.dim, -1)
        else:
            embedding = unit_length(self.layers(pixels))
        if features.ndim == 2:
            return embedding[0].T
        return embedding.view(*embedding.shape[:2], *images.shape[2:])

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.dim}, kind={self.kind!r}"
