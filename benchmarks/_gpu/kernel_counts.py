"""Which kernels each GPU test compiles, found without a GPU: a plugin of pytest.

    PIXCONTRAST_GPU_TESTS_ON_CPU=count python -m pytest -p benchmarks._gpu.kernel_counts \\
        --kernel-counts FILE tests/gpu

Triton prepares each launch for an H100 on CPU tensors; a hook of its runtime then names the variant
of the kernel that would be compiled, and stops there. The file maps each test to short hashes of
its variants. Results of the tests are meaningless, so that failed assertions are
ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

CARD = 90
"""Compute capability of an H100, as ten times major and minor."""


class _Driver:
    """As much of a driver as Triton asks for before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CARD, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class KernelCounts:
    """Records the kernels of each test that runs."""

    def __init__(self) -> None:
        self.of_test: dict[str, set[str]] = {}
        self._test = ""

    def record(self, *, key: str, fn: Any, **_: Any) -> bool:
        """The hook: True tells Triton not to compile, nor to launch."""
        variant = hashlib.sha256(f"{fn.module}.{fn.name}{key}".encode()).hexdigest()[:12]
        self.of_test.setdefault(self._test, set()).add(variant)
        return True

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, None]:
        self._test = item.nodeid
        self.of_test.setdefault(item.nodeid, set())
        outcome = yield
        if outcome.excinfo is not None and issubclass(outcome.excinfo[0], AssertionError):
            outcome.force_result(None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-counts", type=Path, required=True, help="file to write")


def pytest_configure(config: pytest.Config) -> None:
    counts = KernelCounts()
    config.pluginmanager.register(counts, "kernel-counts")
    config.addinivalue_line("filterwarnings", "ignore")
    # Triton 3.9 warns where this is unset; the value is its default.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    triton.runtime.driver.set_active(_Driver())
    triton.knobs.runtime.jit_cache_hook = counts.record
    # Kernels leave memory unwritten; indices read from it must stay within bounds.
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _zeroed(getattr(owner, name)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    counts = session.config.pluginmanager.get_plugin("kernel-counts")
    found = {test: sorted(variants) for test, variants in counts.of_test.items()}
    session.config.getoption("--kernel-counts").write_text(json.dumps(found))


def _zeroed(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def zeros(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            return allocate(*args, **kwargs).zero_()

    return zeros
