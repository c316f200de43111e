"""What the card can do at all: matrix products and copying, measured beside the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cuda_timing import Run, attempt, seconds_of
from benchmarks.gpu_ways import Case, Drawn

SQUARE = 8192
"""Rows and columns of the large square product, whose rate the shares are of."""
MOST_ELEMENTS = 1 << 28
"""Of an intermediate result; beyond it the products are made over some columns at a time."""
COPIED = 1 << 30
"""Bytes that are copied to see the bandwidth."""


def problem_products(drawn: Drawn) -> Run:
    """The two products of a loss, M×D by D×N and M×N by N×D, into results that are there."""
    anchors = drawn.anchors.detach()
    entries = anchors if drawn.entries is None else drawn.entries
    rows = max(len(anchors), 1)
    columns = max(1, min(len(entries), MOST_ELEMENTS // rows))
    between, result = anchors.new_empty(rows * columns), torch.empty_like(anchors)

    def run() -> None:
        for part in torch.split(entries, columns):
            tile = between[: rows * len(part)].view(rows, len(part))
            torch.mm(anchors, part.T, out=tile)
            torch.mm(tile, part, out=result)

    return run


def products_flops(case: Case) -> int:
    """Of `problem_products`, which are two whatever the loss needs."""
    return 4 * case.similarities * case.dim


def square_product(dtype: torch.dtype, device: torch.device, size: int = SQUARE) -> Run:
    """One large product, of random numbers: those of zeros take less power, and run faster."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def copy_bandwidth(device: torch.device, bytes_copied: int = COPIED) -> float | str:
    """GB/s, each byte counted as it is read and as it is written; or why there is none."""

    def job() -> float:
        source: Tensor = torch.ones(bytes_copied // 4, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device, times=10, untimed=3)
        return 2 * bytes_copied / seconds / 1e9

    return attempt(job, device)
