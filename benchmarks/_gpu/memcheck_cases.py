"""A few small calls of the fused kernels, for memcheck to watch.

compute-sanitizer --tool memcheck --error-exitcode 9 python -m benchmarks._gpu.memcheck_cases
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch.nn import functional as F

from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce


class Case(NamedTuple):
    """Sizes, dtype and options of one call; few, because each compiles kernels of its own."""

    rows: int
    columns: int
    dim: int
    dtype: torch.dtype
    denominator: str
    mined: bool = False


CASES = (
    Case(65, 300, 64, torch.bfloat16, "negatives"),
    Case(65, 300, 64, torch.float32, "all"),
    Case(33, 70, 123, torch.bfloat16, "all"),
    Case(17, 40, 3, torch.float32, "negatives"),
    Case(65, 300, 64, torch.bfloat16, "negatives", mined=True),
)


def main(device: str = "cuda", backend: str = "triton") -> None:
    """Run every case: anchors against themselves, entries with gradient and a bank."""
    generator = torch.Generator().manual_seed(0)
    for case in CASES:
        # Made on the CPU, so that few kernels besides those of this package run on the device.
        anchors, entries = (
            F.normalize(torch.randn(count, case.dim, generator=generator), dim=1).to(case.dtype)
            for count in (case.rows, case.columns)
        )
        labels = torch.arange(case.rows) % 5
        entry_labels = torch.arange(case.columns) * 5 // case.columns
        entry_labels[::7] = 255
        leaf = anchors.to(device).requires_grad_()
        wanted = entries.to(device).requires_grad_()
        sampler = HardNegativeSampler(strategy="hardest", num_negatives=8, num_positives=4)
        loss = info_nce(
            leaf,
            labels.to(device),
            [None, wanted, entries.to(device)],
            [None, entry_labels.to(device), entry_labels.to(device)],
            denominator=case.denominator,  # type: ignore[arg-type]
            negative_sampler=sampler if case.mined else None,
            backend=backend,  # type: ignore[arg-type]
        )
        loss.backward()  # type: ignore[no-untyped-call]
        print(*case, float(loss.detach()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
