"""What the device can do at all: matrix products and copies."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._measure.timers import Run, attempt, seconds_of
from benchmarks._ways.problem import Case, Problem

MOST_ELEMENTS = 1 << 28
"""On a GPU, of the intermediate result; beyond it the products are made over some columns at a
time."""


def floor_products(problem: Problem, most_elements: int = MOST_ELEMENTS) -> Run:
    """Return the two products of a loss, M×D by D×N and M×N by N×D, into allocated results."""
    anchors, entries = problem.anchors.detach(), problem.contrast.detach()
    rows = max(len(anchors), 1)
    columns = max(1, min(len(entries), most_elements // rows))
    results: list[Tensor] = []

    def run() -> None:
        if not results:
            results.extend((anchors.new_empty(rows * columns), torch.empty_like(anchors)))
        between, result = results
        for part in torch.split(entries, columns):
            tile = between[: rows * len(part)].view(rows, len(part))
            torch.mm(anchors, part.T, out=tile)
            torch.mm(tile, part, out=result)

    return run


def floor_flops(case: Case) -> int:
    """Return the flops of `floor_products`, which are two whatever the loss needs."""
    return 4 * case.similarities * case.dim


def square_product(dtype: torch.dtype, device: torch.device, size: int) -> Run:
    """Return one large product. It is of random numbers: zeros take less power and run faster."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def copy_bandwidth(device: torch.device, num_bytes: int) -> float | str:
    """Return GB/s, each byte counted as read and as written; or in words why it failed."""

    def job() -> float:
        source: Tensor = torch.ones(num_bytes // 4, device=device)
        target = torch.empty_like(source)
        seconds = seconds_of(lambda: target.copy_(source), device, times=10, untimed=3)
        return 2 * num_bytes / seconds / 1e9

    return attempt(job, device)
