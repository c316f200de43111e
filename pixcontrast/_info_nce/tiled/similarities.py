"""Compute the similarities of a tile, or its Z and o by PyTorch's attention for the CPU.

Similarities are one matrix product, scaled by 1/τ and saturated where necessary. If every entry of
a tile counts for every anchor, Z and o are an attention with the anchors as queries and the entries
as keys and values. The CPU kernel never writes the similarities to memory. It is not part of
PyTorch's public API; without it, the tile is computed by matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.tiled.class_order import ClassOrder, reads_are_free

# A tile has at most 1,024 × 4,096 similarities, 16 MB in float32. Products of fewer rows are
# slower, and more columns gain nothing (docs/performance.md).
TILE_ROWS = 1024
TILE_COLUMNS = 4096
# A tile takes at most this fraction of the CPU's last-level cache: it is written once and read
# three times, and the cache also holds the operands.
CACHE_FRACTION = 0.25
# Assumed size of the last-level cache, in bytes, if the system does not report it.
ASSUMED_CACHE = 16 << 20

# If no similarity exceeds this, exp and its sum over a row neither overflow nor underflow, so no
# maximum has to be subtracted. The largest exponents are 88 in float32 and 709 in float64.
BOUNDED_LOGIT = {torch.float32: 40.0, torch.float64: 300.0}

# Largest number of entries of one attention. The cost of merging its result is small beside this.
MAX_ATTENDED = 4096
# The entries are split over threads if each gets at least this many, the block size of the kernel.
MIN_ATTENDED_PER_THREAD = 512

_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_CACHE_INFO = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}


class Similarities:
    """How to compute the similarities of the anchors with each contrast tensor.

    Attributes:
        bounded (bool): whether every similarity is known to be within `BOUNDED_LOGIT`.
        may_saturate (list of bool): for each contrast tensor, whether a similarity may exceed the
            range of its dtype.
    """

    def __init__(self, problem: Problem, row_norm: float, norms: Sequence[float]) -> None:
        """Decide from bounds of the norms of the anchors and of each contrast tensor's entries."""
        self._scale = problem.inverse_temperature
        self._limit = problem.logit_limit
        self._largest = torch.finfo(problem.compute_dtype).max
        scaled_norm = row_norm * self._scale
        self.bounded = scaled_norm * max(norms, default=0.0) <= BOUNDED_LOGIT[problem.compute_dtype]
        # A library may scale the rows before the product or the results after it, and neither may
        # overflow. Decide for each tensor independently of the others: a backward that reads only
        # some of them must compute the same bits.
        largest = max(scaled_norm, row_norm)
        self.may_saturate = [not largest * max(norm, 1.0) < self._limit for norm in norms]

    @classmethod
    def of(cls, problem: Problem, rows: Tensor, contrast: dict[int, ClassOrder]) -> Similarities:
        """Compute the norms of rows and of contrast tensors, given by their index."""
        norms = [0.0] * len(problem.is_anchors)
        for index, order in contrast.items():
            tiles = split(slice(0, len(order)), TILE_COLUMNS)
            norms[index] = max((max_norm(order.operands(tile)) for tile in tiles), default=0.0)
        return cls(problem, max_norm(rows), norms)

    def write(
        self, logits: Tensor, rows: Tensor, entries: Tensor, index: int, factor: float = 1.0
    ) -> None:
        """Overwrite `logits` (R, T) by `factor` · similarities of rows with entries of a tensor."""
        scale = min(self._scale * factor, self._largest)
        if self.may_saturate[index]:
            torch.mm(rows, entries.T, out=logits)
            logits.mul_(scale).clamp_(-self._limit, self._limit)
        else:
            torch.addmm(logits, rows, entries.T, beta=0.0, alpha=scale, out=logits)


def tile_columns(device: torch.device) -> int:
    """Return the largest number of columns of a tile of `TILE_ROWS` float32 rows."""
    if not reads_are_free(device):
        return TILE_COLUMNS
    fitting = int(CACHE_FRACTION * last_level_cache()) // (4 * TILE_ROWS)
    return min(TILE_COLUMNS, max(fitting, 256))


def split(whole: slice, size: int) -> Iterator[slice]:
    """Split a slice into slices of at most `size` that differ in length by at most one.

    A matrix product with a small remainder would be slow.
    """
    length = whole.stop - whole.start
    count = -(-length // size)
    for index in range(count):
        start, stop = index * length // count, (index + 1) * length // count
        yield slice(whole.start + start, whole.start + stop)


def can_attend(vectors: Tensor) -> bool:
    """Return whether PyTorch has the attention kernel for these vectors."""
    return vectors.device.type == "cpu" and hasattr(torch.ops.aten, _ATTENTION)


def attend(rows: Tensor, entries: Tensor, scale: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield Z (R,) and o (R, D) of (R, D) rows over disjoint subsets of the (T, D) entries.

    Similarities are dot products times `scale`.
    """
    row_stride, stride = entries.stride()
    if stride != 1 or row_stride < entries.shape[1]:
        # The kernel ignores the stride of the last dimension, and rows must not overlap.
        entries = entries.contiguous()
    num_splits = max(1, min(torch.get_num_threads(), len(entries) // MIN_ATTENDED_PER_THREAD))
    size = len(entries) // num_splits
    even = entries[: num_splits * size].view(num_splits, 1, size, entries.shape[1])
    for splits in (even, entries[num_splits * size :][None, None]):
        if splits.numel() > 0:
            queries = rows.expand(len(splits), 1, *rows.shape)
            means, lse = getattr(torch.ops.aten, _ATTENTION)(queries, splits, splits, scale=scale)
            yield from zip(lse.squeeze(1), means.squeeze(1), strict=True)


def max_norm(vectors: Tensor) -> float:
    """Return the largest norm of (n, D) vectors; infinity if the host would have to wait for it."""
    if not reads_are_free(vectors.device):
        return float("inf")
    if vectors.shape[0] == 0:
        return 0.0
    return float(torch.linalg.vector_norm(vectors, dim=1).max())


@functools.cache
def last_level_cache() -> int:
    """Return the size of the largest CPU cache in bytes; `ASSUMED_CACHE` if it is unknown."""
    return largest_size(_CACHE_INFO)


def largest_size(folder: Path) -> int:
    """Return the largest `index*/size`, such as `36608K`, of a folder laid out as in /sys."""
    try:
        sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
        return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=ASSUMED_CACHE)
    except (OSError, ValueError, KeyError, IndexError):
        return ASSUMED_CACHE
