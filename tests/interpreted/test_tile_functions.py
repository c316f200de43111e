"""Functions of one tile against float64."""

import math

import torch
import triton
import triton.language as tl

from pixcontrast._info_nce.fused.kernels import tile


@triton.jit
def softplus_kernel(margins, terms, sigmoids, size: tl.constexpr):
    ids = tl.arange(0, size)
    term, sigmoid = tile.softplus_and_sigmoid(tl.load(margins + ids))
    tl.store(terms + ids, term)
    tl.store(sigmoids + ids, sigmoid)


def test_softplus_and_sigmoid_keep_small_numbers():
    margins = torch.linspace(-126, 126, 1 << 14)
    margins[0], margins[-1] = -torch.inf, torch.inf
    terms, sigmoids = torch.empty_like(margins), torch.empty_like(margins)
    softplus_kernel[(1,)](margins, terms, sigmoids, size=len(margins))
    exponents = torch.exp2(-margins.double().abs())
    expected = margins.double().clamp(min=0) + torch.log1p(exponents) / math.log(2)
    torch.testing.assert_close(terms.double(), expected, rtol=4e-7, atol=0)
    expected = 1 / (1 + torch.exp2(-margins.double()))
    torch.testing.assert_close(sigmoids.double(), expected, rtol=4e-7, atol=1e-38)
