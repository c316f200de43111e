"""Z and o of a tile by PyTorch's attention for the CPU: products, exp and sums in one pass.

If every entry of a tile counts for every anchor, Z and o are an attention with the anchors as
queries and the entries as keys and values. The CPU kernel never writes the similarities to memory.
It is not part of PyTorch's public API; without it, the tile is computed by matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_NAME = "_scaled_dot_product_flash_attention_for_cpu"

# Largest number of entries of one call. Merging costs D numbers a row, little beside this.
MAX_ENTRIES = 4096
# Each thread takes entries of its own if it gets at least this many: the kernel works on 512.
MIN_ENTRIES_PER_THREAD = 512


def can_attend(vectors: Tensor) -> bool:
    """Return whether PyTorch has the attention kernel for these vectors."""
    return vectors.device.type == "cpu" and hasattr(torch.ops.aten, _NAME)


def attend(rows: Tensor, entries: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield Z (R,) and o (R, D) of (R, D) rows over disjoint subsets of the (T, D) entries.

    Similarities are dot products times `scale`.
    """
    entries = _with_unit_stride(entries)
    num_splits = max(1, min(torch.get_num_threads(), len(entries) // MIN_ENTRIES_PER_THREAD))
    size = len(entries) // num_splits
    even = entries[: num_splits * size].view(num_splits, 1, size, entries.shape[1])
    yield from _attend(rows, even, scale)
    rest = entries[num_splits * size :]
    if len(rest) > 0:
        yield from _attend(rows, rest[None, None], scale)


def _with_unit_stride(vectors: Tensor) -> Tensor:
    """Return vectors whose rows do not overlap: the kernel ignores the stride of the last dim."""
    row_stride, stride = vectors.stride()
    return vectors if stride == 1 and row_stride >= vectors.shape[1] else vectors.contiguous()


def _attend(rows: Tensor, splits: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    queries = rows.expand(len(splits), 1, *rows.shape)
    means, lse = getattr(torch.ops.aten, _NAME)(queries, splits, splits, scale=scale)
    yield from zip(lse.squeeze(1), means.squeeze(1), strict=True)
