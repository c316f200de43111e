"""Numbers as integers of the same order, of which kernels and ranks select the k-th largest."""

import pytest
import torch

from pixcontrast._info_nce import radix_select

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_have_the_order_of_their_numbers(dtype):
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
def test_both_zeros_are_one_integer(dtype):
    zero = torch.zeros(1, dtype=dtype)
    assert torch.equal(radix_select.to_ordered_int(-zero), radix_select.to_ordered_int(zero))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_the_kth_largest_of_two_parts(dtype, k):
    """Counts of parts are added up; ties count, and rows with fewer candidates have no k-th."""
    numbers = (torch.randn(6, 40, dtype=dtype) * 4).round()
    candidate = torch.rand(6, 40) < 0.4
    candidate[0] = False
    integers = radix_select.to_ordered_int(numbers)

    def count_digits(prefix, shift):
        return sum(
            radix_select.count_digits_of(integers[:, part], candidate[:, part], prefix, shift)
            for part in (slice(0, 15), slice(15, 40))
        )

    found = radix_select.radix_select(count_digits, torch.full((6, 1), k), integers.dtype)
    assert found.dtype == INTEGERS[dtype]
    for row in range(6):
        descending = numbers[row][candidate[row]].sort(descending=True).values
        if len(descending) < k:
            assert found[row] == torch.iinfo(found.dtype).min
        else:
            assert radix_select.from_ordered_int(found[row]) == descending[k - 1]
