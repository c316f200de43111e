"""The kernel of the bits of random keys, beside the operations that it replaces."""

import pytest
import torch

from pixcontrast import _triton
from pixcontrast._info_nce.thresholds import anchor_bits, entry_bits


@pytest.mark.parametrize("bits_of", [anchor_bits, entry_bits])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**31, 2**62 + 12345, 2**63 - 2])
def test_the_same_bits(bits_of, seed, monkeypatch):
    ids = torch.cat([torch.randperm(2000) + 2**31 - 1000, torch.tensor([0, -1, -5, 2**40 + 3])])
    results = []
    for takes_kernels in (False, True):
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_, use=takes_kernels: use)
        results.append(bits_of(torch.tensor(seed), ids))
        assert bits_of(torch.tensor(seed), ids[:0]).numel() == 0
    assert results[0].dtype == results[1].dtype == torch.int32
    assert torch.equal(*results)
