"""Pixels of an embedding map: where they are, how they are taken out, how they get unit length.

Inside the package an embedding is always (B, D, *S). All B·P pixels are numbered through, images
in order, pixels of an image in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast._resize import resize_nearest

# A vector with no component above this counts as zero: scaled to unit length, its gradient
# would overflow float32.
SMALLEST = 1e-30


def as_images(emb: Tensor) -> Tensor:
    """(B, D, *S) as it is; (N, D) points as a view (1, D, N), one image."""
    return emb.T[None] if emb.ndim == 2 else emb


def flat_map(pixel_map: Tensor, images: Tensor) -> Tensor:
    """A map (B, *S_any), or (N,) of points, as (B, P) at the size of the embedding."""
    if pixel_map.ndim == 1:
        return pixel_map[None]
    return resize_nearest(pixel_map, images.shape[2:]).flatten(1)


def flat_predictions(preds: Tensor, images: Tensor) -> Tensor:
    """Predicted classes, or logits of them, as (B, P) classes at the size of the embedding."""
    if not preds.is_floating_point():
        return flat_map(preds, images)
    if preds.ndim == 2:
        return _most_likely(preds.detach())[None]
    # Picked first: nearest resizing and argmax commute, and fewer pixels need an argmax.
    return _most_likely(resize_nearest(preds.detach(), images.shape[2:])).flatten(1)


def _most_likely(logits: Tensor) -> Tensor:
    """Argmax over the classes, dim 1; `max` finds the same, in a fifth of the time on the CPU."""
    return logits.max(dim=1).indices


def take_pixels(images: Tensor, indices: Tensor) -> Tensor:
    """(K, D) the pixels with the given numbers out of B·P.

    Indexed in place, whatever the strides: neither the map nor its gradient is permuted.
    """
    if indexed_in_place(images):
        if torch.compiler.is_compiling():
            # The compiler (PyTorch 2.7 to 2.13) makes a wrong gradient of an index into the map,
            # where most pixels are taken and then given unit length; of rows it makes a right one.
            return images.flatten(2).transpose(1, 2).flatten(0, 1)[indices]
        return images[_places(images.shape, indices)]
    taken: Tensor = TakenPixels.apply(images, indices)  # type: ignore[no-untyped-call]
    return taken


def indexed_in_place(images: Tensor) -> bool:
    """Whether PyTorch's own gradient of an index is written without copies of the map."""
    return images.device.type == "cpu"


class TakenPixels(torch.autograd.Function):
    """Indexing whose gradient is one map of zeros, written to where pixels were taken.

    PyTorch's own, on a GPU, permutes the map and copies it there and back, since a pixel may have
    been taken twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, indices: Tensor) -> Tensor:
        return images[_places(images.shape, indices)]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        images, indices = inputs
        ctx.save_for_backward(indices)
        ctx.shape = images.shape

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        gradient: Tensor = _PutPixels.apply(upstream, indices, ctx.shape)  # type: ignore[no-untyped-call]
        return gradient, None


class _PutPixels(torch.autograd.Function):
    """The transpose of `TakenPixels`: rows added to a map of zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
        # Repeated numbers all write the sum of their rows, so that writes to one place agree.
        ascending, sums = _add_up_equal(indices, rows)
        images = rows.new_zeros(shape)
        images[_places(shape, ascending)] = sums
        return images

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        rows: Tensor = TakenPixels.apply(upstream, indices)  # type: ignore[no-untyped-call]
        return rows, None, None


def _add_up_equal(numbers: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers (K,) sorted, and at each place the sum of all rows (K, D) of that number."""
    ascending, order = numbers.sort(stable=True)
    first = torch.searchsorted(ascending, ascending)
    sums = torch.zeros_like(rows).index_put((first,), rows[order], accumulate=True)
    return ascending, sums[first]


def _places(shape: Sequence[int], indices: Tensor) -> tuple[Tensor | slice, ...]:
    """Where in (B, D, *S) the pixels with the given numbers are."""
    places: list[Tensor] = []
    for size in reversed(shape[2:]):
        places.insert(0, indices % max(size, 1))
        indices = indices // max(size, 1)
    return indices, slice(None), *places


def unit_length(vectors: Tensor, dim: int = 1) -> Tensor:
    """Vectors scaled to unit length; a zero vector stays zero, with zero gradient.

    Made in float32 at least, and in the dtype that came. Neither squares nor their sum overflow
    or vanish: the largest component is taken out first, as a constant, which the result and
    its derivative do not depend on.
    """
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    largest = largest_component(wide.detach(), dim)
    # Divided by infinity, what counts as zero is zero, and so is its gradient.
    scaled = wide / largest.masked_fill(largest <= SMALLEST, torch.inf)
    # Of what is not zero the largest component is 1, and the norm no less.
    norm = torch.linalg.vector_norm(scaled, dim=dim, keepdim=True)
    unit: Tensor = scaled / norm.clamp(min=1.0)
    return unit.to(vectors.dtype)


def largest_component(vectors: Tensor, dim: int) -> Tensor:
    """Max |x|, keeping `dim` with size 1; NaN or infinite where a component is."""
    if vectors.device.type == "cpu":
        # A norm across a stride is eight times as slow as this; elsewhere it is one read.
        return vectors.abs().amax(dim=dim, keepdim=True)
    largest: Tensor = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=dim, keepdim=True)
    return largest


def sum_of_squares(vectors: Tensor, dim: int) -> Tensor:
    """Σ x² over `dim`, keeping it with size 1."""
    if vectors.device.type == "cpu":
        return vectors.square().sum(dim=dim, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return norm.square()
