"""Numbers as integers of the same order, by which kernels and ranks search for thresholds."""

import pytest
import torch

from pixcontrast._info_nce import radix_select

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_images_have_the_order_of_their_numbers(dtype):
    finite = torch.finfo(dtype)
    above = [finite.tiny, 1.0, 1.5, finite.max, torch.inf]
    ascending = torch.tensor([*(-one for one in reversed(above)), 0.0, *above], dtype=dtype)
    made = radix_select.to_ordered_int(ascending)
    assert made.dtype == INTEGERS[dtype]
    assert (made.diff() > 0).all()
    back = radix_select.from_ordered_int(made)
    assert back.dtype == dtype
    assert torch.equal(back, ascending)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_both_zeros_have_one_image(dtype):
    zero = torch.zeros(1, dtype=dtype)
    assert torch.equal(radix_select.to_ordered_int(-zero), radix_select.to_ordered_int(zero))
