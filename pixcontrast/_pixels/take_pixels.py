"""Pixels of a map at flat indices, with a deterministic gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixcontrast._tensors import at_least_float32


def take_pixels(emb_map: Tensor, indices: Tensor) -> Tensor:
    """Return the pixels (K, D) of a map (B, D, *S) at flat indices (K,), which may repeat."""
    if torch.compiler.is_compiling():
        # PyTorch's own gradient of an index adds rows of a repeated pixel atomically and in the
        # dtype of the map. PyTorch 2.7 to 2.13 compiles it wrongly if most pixels are taken and
        # then normalized.
        rows: Tensor = take_operator(emb_map, indices)
        return rows
    taken: Tensor = TakePixels.apply(emb_map, indices)  # type: ignore[no-untyped-call]
    run_late(taken.grad_fn)
    return taken


def run_late(node: Any) -> None:
    """Let autograd run this node after others that are ready, to reduce peak memory.

    The node allocates a map of zeros. When it runs last, the buffers of other losses are freed.
    Autograd runs nodes in descending order of this number, which is not part of its public API.
    """
    if hasattr(node, "_set_sequence_nr"):
        node._set_sequence_nr(0)


def _take(emb_map: Tensor, indices: Tensor) -> Tensor:
    return emb_map[_index(emb_map.shape, indices)]


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    emb_map, indices = inputs
    ctx.save_for_backward(indices)
    ctx.shape = emb_map.shape
    # Dense strides in the memory format of the map, for example channels_last.
    ctx.strides = torch.empty_like(emb_map, device="meta").stride()


def _put(rows: Tensor, indices: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Add rows to a map of zeros with the given strides."""
    # Equal indices all write the sum of their rows, so the result is deterministic.
    ascending, sums = _sum_equal(indices, rows)
    emb_map = rows.new_empty_strided(shape, strides).zero_()
    # Adjacent indices: with others, vmap's rule of this operation transposes the values.
    images, _, *pixels = _index(shape, ascending)
    at = (images, *pixels)
    emb_map.movedim(1, -1)[at] = sums
    return emb_map


def _sum_equal(indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sort indices (K,), and return for each one the sum of all rows (K, D) of that index."""
    ascending, order = indices.sort(stable=True)
    first = torch.searchsorted(ascending, ascending)
    ordered = rows[order].to(at_least_float32(rows))
    zeros = torch.zeros_like(ordered)
    # Without atomic additions: index_add has none on a CPU, and index_put sorts on other devices.
    if rows.device.type == "cpu":
        sums = zeros.index_add(0, first, ordered)
    else:
        sums = zeros.index_put((first,), ordered, accumulate=True)
    return ascending, sums[first].to(rows.dtype)


def _index(shape: Sequence[int], indices: Tensor) -> tuple[Tensor | slice, ...]:
    """Convert flat pixel indices to an index into a map of this shape (B, D, *S)."""
    spatial: list[Tensor] = []
    for size in reversed(shape[2:]):
        spatial.insert(0, indices % max(size, 1))
        indices = indices // max(size, 1)
    return indices, slice(None), *spatial


class TakePixels(torch.autograd.Function):
    """Indexing whose backward allocates one map of zeros and writes the gradient rows to it.

    On a GPU, PyTorch's own backward permutes the map and copies it twice, because an index may
    occur twice.
    """

    generate_vmap_rule = True
    forward = staticmethod(_take)
    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        gradient: Tensor = _PutPixels.apply(grad_output, indices, ctx.shape, ctx.strides)  # type: ignore[no-untyped-call]
        return gradient, None


class _PutPixels(torch.autograd.Function):
    """The transpose of `TakePixels`."""

    generate_vmap_rule = True
    forward = staticmethod(_put)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (indices,) = ctx.saved_tensors
        rows: Tensor = TakePixels.apply(grad_output, indices)  # type: ignore[no-untyped-call]
        return rows, None, None, None


# The same for torch.compile.


@torch.library.custom_op("pixcontrast::take_pixels", mutates_args=())
def take_operator(emb_map: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of `take_pixels`."""
    return _take(emb_map, indices).contiguous()


@torch.library.custom_op("pixcontrast::put_pixels", mutates_args=())
def put_operator(
    rows: Tensor, indices: Tensor, shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """Return the gradient of `take_operator`."""
    return _put(rows, indices, shape, strides)


@take_operator.register_fake
def _(emb_map: Tensor, indices: Tensor) -> Tensor:
    return emb_map.new_empty(indices.shape[0], emb_map.shape[1])


@put_operator.register_fake
def _(rows: Tensor, indices: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    return rows.new_empty_strided(shape, strides)


def _put_gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    (indices,) = ctx.saved_tensors
    gradient: Tensor = put_operator(upstream, indices, ctx.shape, ctx.strides)
    return gradient, None


take_operator.register_autograd(_put_gradient, setup_context=_save)
