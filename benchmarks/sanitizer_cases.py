"""A few small calls of the fused kernels, for `compute-sanitizer` to look at.

compute-sanitizer --tool memcheck python -m benchmarks.sanitizer_cases
"""

from __future__ import annotations

import sys

import torch
from torch.nn import functional as F

from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

SIZES = ((65, 300, 64), (33, 70, 123), (17, 40, 3))
DTYPES = (torch.bfloat16, torch.float32)


def main(device: str = "cuda", backend: str = "triton") -> None:
    """Every pass of the loss: a bank, entries with gradient, itself, and mining."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns, dim in SIZES:
        for dtype in DTYPES:
            # Made on the CPU: what is looked at are our kernels, not PyTorch's.
            anchors, entries = (
                F.normalize(torch.randn(count, dim, generator=generator), dim=1).to(dtype)
                for count in (rows, columns)
            )
            labels = torch.arange(rows) % 5
            entry_labels = torch.arange(columns) * 5 // columns
            entry_labels[::7] = 255
            for mining in (None, HardNegativeSampler(num_negatives=8, num_positives=4)):
                leaf = anchors.to(device).requires_grad_()
                wanted = entries.to(device).requires_grad_()
                bank = entries.to(device)
                for denominator in ("negatives", "all"):
                    loss = info_nce(
                        leaf,
                        labels.to(device),
                        [None, wanted, bank],
                        [None, entry_labels.to(device), entry_labels.to(device)],
                        denominator=denominator,
                        negative_sampler=mining,
                        backend=backend,  # type: ignore[arg-type]
                    )
                    loss.backward()  # type: ignore[no-untyped-call]
                    print(rows, columns, dim, dtype, denominator, float(loss.detach()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
