r"""Which kernels each GPU test compiles, found without a GPU: a plugin of pytest.

    PIXCONTRAST_GPU_TESTS_ON_CPU=count PYTHONPATH=tests/gpu python -m pytest -p kernel_counts \
        --kernel-counts FILE tests/gpu

Triton prepares each launch for an H100 on CPU tensors. A hook of its runtime then receives the
variant of the kernel that would be compiled, and stops there. Results of the tests are meaningless,
so that failed assertions are ignored.

The file is a JSON object with short hashes of the variants that each test launches.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

CARD = 90
"""Compute capability of an H100, as ten times major and minor."""


class KernelCounts:
    """Records the kernels of each test that runs."""

    def __init__(self, path):
        self.kernels = {}
        self._path = path
        self._test = ""

    def record(self, *, key, fn, **_):
        """The hook: True tells Triton neither to compile nor to launch."""
        variant = hashlib.sha256(f"{fn.module}.{fn.name}{key}".encode()).hexdigest()[:12]
        if variant not in self.kernels[self._test]:
            self.kernels[self._test].append(variant)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        self._test = item.nodeid
        self.kernels[self._test] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self):
        outcome = yield
        if outcome.excinfo is not None and issubclass(outcome.excinfo[0], AssertionError):
            outcome.force_result(None)

    def pytest_sessionfinish(self):
        self._path.write_text(json.dumps(self.kernels))


class _Driver:
    """As much of a driver as Triton needs before it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CARD, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def pytest_addoption(parser):
    parser.addoption("--kernel-counts", type=Path, required=True, help="file to write")


def pytest_configure(config):
    import triton

    counts = KernelCounts(config.getoption("--kernel-counts"))
    config.pluginmanager.register(counts, "kernel-counts")
    config.addinivalue_line("filterwarnings", "ignore")
    # Triton 3.9 warns where this is unset; the value is its default.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    triton.runtime.driver.set_active(_Driver())
    triton.knobs.runtime.jit_cache_hook = counts.record
    # Kernels leave memory unwritten; indices read from it must stay within bounds.
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _zeroed(getattr(owner, name)))


def _zeroed(allocate):
    def zeros(*args, **kwargs):
        with torch.no_grad():
            return allocate(*args, **kwargs).zero_()

    return zeros
