"""The embeddings of the sampled pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixcontrast._info_nce.once_differentiable import once_differentiable
from pixcontrast._pixels.take_pixels import run_late, take_pixels
from pixcontrast._tensors import IGNORED, mark_ignored, unit_length
from pixcontrast._triton import Backend, choose, takes_kernels


def sampled_rows(
    emb_map: Tensor,
    indices: Tensor,
    labels: Tensor,
    ignore_index: int,
    *,
    normalize: bool,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """Return the pixels (K, D) of a map (B, D, *S) at flat indices (K,), and their marked labels.

    Ignored pixels are zeros. The kernels are differentiable once, as the loss by kernels is.
    """
    if normalize and takes_kernels(emb_map) and choose(backend, emb_map) == "triton":
        from pixcontrast._pixels.row_kernels import supports

        if supports(emb_map):
            rows, marked = _UnitRows.apply(emb_map, indices, labels, ignore_index)  # type: ignore[no-untyped-call]
            run_late(rows.grad_fn)
            return rows, marked
    marked = mark_ignored(labels, ignore_index)
    return valid_rows(take_pixels(emb_map, indices), marked, normalize=normalize), marked


def valid_rows(vectors: Tensor, labels: Tensor, *, normalize: bool) -> Tensor:
    """Return rows (K, D), of unit length if `normalize`, with zeros where labels are ignored.

    The embedding of padding is that of some pixel and may be NaN.
    """
    vectors = torch.where((labels != IGNORED)[:, None], vectors, 0.0)
    return unit_length(vectors) if normalize else vectors


class _UnitRows(torch.autograd.Function):
    """Gathers rows of unit length, and marks their labels. The backward writes a map of zeros."""

    @staticmethod
    def forward(
        ctx: Any, emb_map: Tensor, indices: Tensor, labels: Tensor, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        from pixcontrast._pixels.row_kernels import gather_rows

        made = gather_rows(emb_map, indices, labels, ignore_index)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(made.labels)
        ctx.save_for_backward(made.unit, made.inverse_length, made.keys)
        ctx.shape = emb_map.shape
        # Dense strides in the memory format of the map, for example channels_last.
        ctx.strides = torch.empty_like(emb_map, device="meta").stride()
        return made.unit.to(emb_map.dtype), made.labels

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        from pixcontrast._pixels.row_kernels import scatter_gradient

        if upstream is None:
            return None, None, None, None
        with torch.no_grad():
            gradient = scatter_gradient(upstream, ctx.saved_tensors, ctx.shape, ctx.strides)
        return once_differentiable(gradient, (upstream,)), None, None, None
