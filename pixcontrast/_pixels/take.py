"""Index pixels of an embedding map without a permuted copy of the map or of its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def take_pixels(emb_map: Tensor, indices: Tensor) -> Tensor:
    """Gather pixels of a map by their flat index.

    Args:
        emb_map (Tensor): embedding map with any strides, shape (B, D, *S).
        indices (Tensor): int64 flat indices in [0, B·P), shape (K,). They may repeat.

    Returns:
        The embeddings, shape (K, D).
    """
    if indexed_in_place(emb_map):
        if torch.compiler.is_compiling():
            # torch.compile (PyTorch 2.7 to 2.13) computes a wrong gradient of an index into the
            # map if most pixels are taken and then normalized. For rows the gradient is correct.
            return emb_map.flatten(2).transpose(1, 2).flatten(0, 1)[indices]
        return emb_map[_index(emb_map.shape, indices)]
    taken: Tensor = TakePixels.apply(emb_map, indices)  # type: ignore[no-untyped-call]
    return taken


def indexed_in_place(emb_map: Tensor) -> bool:
    """Return whether PyTorch's gradient of an index is written without copies of the map."""
    return emb_map.device.type == "cpu"


class TakePixels(torch.autograd.Function):
    """Indexing whose backward allocates one map of zeros and writes the gradient rows to it.

    On a GPU, PyTorch's own backward permutes the map and copies it twice, because an index may
    occur twice.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(emb_map: Tensor, indices: Tensor) -> Tensor:
        return emb_map[_index(emb_map.shape, indices)]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        emb_map, indices = inputs
        ctx.save_for_backward(indices)
        ctx.shape = emb_map.shape

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        gradient: Tensor = _PutPixels.apply(grad_output, indices, ctx.shape)  # type: ignore[no-untyped-call]
        return gradient, None


class _PutPixels(torch.autograd.Function):
    """The transpose of `TakePixels`: add rows to a map of zeros."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
        # Equal indices all write the sum of their rows, so the result is deterministic.
        ascending, sums = _sum_equal(indices, rows)
        emb_map = rows.new_zeros(shape)
        emb_map[_index(shape, ascending)] = sums
        return emb_map

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        rows: Tensor = TakePixels.apply(grad_output, indices)  # type: ignore[no-untyped-call]
        return rows, None, None


def _sum_equal(indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sort indices (K,), and return for each one the sum of all rows (K, D) of that index."""
    ascending, order = indices.sort(stable=True)
    first = torch.searchsorted(ascending, ascending)
    sums = torch.zeros_like(rows).index_put((first,), rows[order], accumulate=True)
    return ascending, sums[first]


def _index(shape: Sequence[int], indices: Tensor) -> tuple[Tensor | slice, ...]:
    """Convert flat pixel indices to an index into a map of this shape (B, D, *S)."""
    spatial: list[Tensor] = []
    for size in reversed(shape[2:]):
        spatial.insert(0, indices % max(size, 1))
        indices = indices // max(size, 1)
    return indices, slice(None), *spatial
