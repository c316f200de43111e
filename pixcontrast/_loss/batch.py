"""The batch of one call of a loss, and the embeddings of its sampled pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._bank.new_entries import DrawnPixels
from pixcontrast._pixels.regions import Embed
from pixcontrast._pixels.take_pixels import take_pixels


class Anchors(NamedTuple):
    """The anchors of a call."""

    vectors: Tensor  # embeddings, (K, D)
    labels: Tensor  # int64 labels, `IGNORED` for padding, (K,)
    weight: Tensor | None  # (K,)
    images: Tensor | None  # image of each anchor, (K,), if the call needs it


@dataclass(frozen=True)
class Batch:
    """The arguments of a call, at the size of the feature map."""

    features: Tensor  # the embedding map, or the input of `projection`, (B, C, *S)
    projection: nn.Module | None  # maps feature rows (n, C) to embeddings (n, D)
    labels: Tensor  # int64 labels, `IGNORED` for ignored pixels, (B, P)
    preds: Tensor | None  # predicted classes, (B, P)
    weight: Tensor | None  # weight of each pixel, (B, P)

    def project(
        self, projection: nn.Module, anchors: Tensor, valid: Tensor, drawn: DrawnPixels | None
    ) -> tuple[Tensor, Tensor]:
        """Embed the sampled pixels and those that a bank needs, in one call of the projection.

        Args:
            projection (Module): maps feature rows (n, C) to embeddings (n, D).
            anchors (Tensor): flat indices of the anchors, shape (K,).
            valid (Tensor): which of the anchors are valid, shape (K,).
            drawn (DrawnPixels, optional): n pixels that need no gradient; None: n = 0.

        Returns:
            Embeddings of the anchors, shape (K, D), and of the drawn pixels, detached, shape
            (n, D). The embeddings of pixels that are not valid are arbitrary.
        """
        num_anchors = len(anchors)
        indices = anchors
        if drawn is not None:
            indices = torch.cat([anchors, drawn.indices])
            valid = torch.cat([valid, drawn.valid.flatten()])
        # Padding would count in batch statistics, so replace it by repeated valid pixels.
        indices = _replace_invalid(indices, valid, self.labels.numel())
        rows = take_pixels(self.features, indices[:num_anchors])
        if drawn is not None:
            others = take_pixels(self.features.detach(), indices[num_anchors:])
            rows = torch.cat([rows, others])
        embeddings = check.check_projected(projection(rows), rows)
        return embeddings[:num_anchors], embeddings[num_anchors:].detach()

    def embed_chunk(self) -> Embed | None:
        """Return the function that embeds a chunk (b, C, p) of the features; None: the identity."""
        projection = self.projection
        if projection is None:
            return None

        def embed(features: Tensor) -> Tensor:
            rows = features.transpose(1, 2).flatten(0, 1)
            with torch.no_grad(), eval_mode(projection):
                embeddings = check.check_projected(projection(rows), rows)
            shape = (features.shape[0], features.shape[2], embeddings.shape[1])
            return embeddings.view(shape).transpose(1, 2)

        return embed


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode inside the context, and restore the mode of each submodule."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _replace_invalid(indices: Tensor, valid: Tensor, num_pixels: int) -> Tensor:
    """Replace indices (n,) that are not valid by repeating the valid ones in turn.

    If none is valid, replace them by indices that are spread over all pixels.
    """
    position = torch.arange(len(indices), device=indices.device)
    num_valid = valid.sum()
    # A stable sort: the result must not depend on the device's sorting algorithm.
    valid_first = (~valid).to(torch.uint8).argsort(stable=True)
    repeated = indices[valid_first[position % num_valid.clamp(min=1)]]
    spread = position * num_pixels // max(len(indices), 1)
    return torch.where(valid, indices, torch.where(num_valid > 0, repeated, spread))
