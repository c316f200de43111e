"""A partial result by PyTorch's own attention: products, exp and sums in one pass over the cache.

Where all of some entries count for all of some anchors, Z and o over them are an attention with
the anchors as queries and the entries as keys and values. The processor's kernel for it never
writes a tile of similarities to memory. It is not a public function of PyTorch, so that whoever
lacks it takes the products one by one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_NAME = "_scaled_dot_product_flash_attention_for_cpu"

# The most entries at a time. What is merged afterwards is D numbers a row: little beside these.
MOST_ENTRIES = 4096
# A thread takes a share of the entries for itself if it gets at least so many: the kernel works on
# 512 at a time.
SHARE = 512


def can_attend(vectors: Tensor) -> bool:
    """Whether there is such a kernel for these vectors."""
    return vectors.device.type == "cpu" and hasattr(torch.ops.aten, _NAME)


def attend(rows: Tensor, entries: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Z (R,) and o (R, D) of (R, D) rows over shares of (T, D) entries, similarities · `scale`."""
    entries = _in_rows(entries)
    num_shares = max(1, min(torch.get_num_threads(), len(entries) // SHARE))
    size = len(entries) // num_shares
    even = entries[: num_shares * size].view(num_shares, 1, size, entries.shape[1])
    yield from _attend(rows, even, scale)
    rest = entries[num_shares * size :]
    if len(rest) > 0:
        yield from _attend(rows, rest[None, None], scale)


def _in_rows(vectors: Tensor) -> Tensor:
    """Vectors one after another in memory: the kernel does not ask, and would read others."""
    row_stride, stride = vectors.stride()
    return vectors if stride == 1 and row_stride >= vectors.shape[1] else vectors.contiguous()


def _attend(rows: Tensor, shares: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    queries = rows.expand(len(shares), 1, *rows.shape)
    means, log_sums = getattr(torch.ops.aten, _NAME)(queries, shares, shares, scale=scale)
    yield from zip(log_sums.squeeze(1), means.squeeze(1), strict=True)
