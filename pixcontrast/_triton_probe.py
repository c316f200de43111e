"""A kernel of a few lines. Only that it compiles and launches matters; imported when needed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def probe_kernel(bound):
    """Compare the program id with a bound."""
    tl.device_assert(tl.program_id(0) < bound)
