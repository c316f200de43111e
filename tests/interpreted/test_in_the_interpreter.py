"""The fused kernels without a GPU: in Triton's interpreter, in processes of their own."""

import pytest
from nested import run_part

pytest.importorskip("triton")
PARTS = 4
LEAST = 50
"""How many tests a part holds at the least."""
LEAST_SLOW = 14


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_kernels_in_the_interpreter(part):
    assert run_part(__file__, part, PARTS, TRITON_INTERPRET="1") >= LEAST


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_slow_tests_of_the_kernels_in_the_interpreter():
    assert run_part(__file__, 0, 1, "-m", "slow", TRITON_INTERPRET="1") >= LEAST_SLOW
