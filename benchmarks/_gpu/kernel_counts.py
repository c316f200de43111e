r"""Which kernels each GPU test compiles, found without a GPU: a plugin of pytest.

    PIXCONTRAST_GPU_TESTS_ON_CPU=count python -m pytest -p benchmarks._gpu.kernel_counts \
        --kernel-counts FILE tests/gpu

Triton prepares each launch for an H100 on CPU tensors. A hook of its runtime then receives the
variant of the kernel that would be compiled, and stops there. Results of the tests are meaningless,
so that failed assertions are ignored.

The file is a JSON object of `Planned` for each test. It is written after collection, and again as
tests end, so that a run that is stopped leaves what it has found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

if TYPE_CHECKING:
    import torch

CARD = 90
"""Compute capability of an H100, as ten times major and minor."""
TESTS_PER_WRITE = 10


class Planned(TypedDict):
    """What is known of a test before it runs.

    Attributes:
        kernels: short hashes of the variants of kernels that it launches.
        ungated: the group of a test whose outcome decides nothing, else None.
        large_memory: whether it needs gigabytes of the card's memory.
    """

    kernels: list[str]
    ungated: str | None
    large_memory: bool


def read_plan(path: Path) -> dict[str, Planned]:
    """The tests in a file that this plugin has written; none where there is no such file."""
    if not path.exists():
        return {}
    plan: dict[str, Planned] = json.loads(path.read_text())
    return plan


class KernelCounts:
    """Records the kernels of each test that runs."""

    def __init__(self, path: Path, part: int, parts: int) -> None:
        self.plan: dict[str, Planned] = {}
        self._path = path
        self._part, self._parts = part, parts
        self._test = ""
        self._ended = 0

    def record(self, *, key: str, fn: Any, **_: Any) -> bool:
        """The hook: True tells Triton neither to compile nor to launch."""
        variant = hashlib.sha256(f"{fn.module}.{fn.name}{key}".encode()).hexdigest()[:12]
        if variant not in self.plan[self._test]["kernels"]:
            self.plan[self._test]["kernels"].append(variant)
        return True

    @pytest.hookimpl(trylast=True)  # After -k and -m.
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = items[self._part :: self._parts]
        for item in items:
            marker = item.get_closest_marker("ungated")
            self.plan[item.nodeid] = {
                "kernels": [],
                "ungated": None if marker is None else marker.args[0],
                "large_memory": item.get_closest_marker("large_memory") is not None,
            }
        self._write()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, None]:
        outcome = yield
        if outcome.excinfo is not None and issubclass(outcome.excinfo[0], AssertionError):
            outcome.force_result(None)

    def pytest_runtest_logfinish(self) -> None:
        self._ended += 1
        if self._ended % TESTS_PER_WRITE == 0:
            self._write()

    def pytest_sessionfinish(self) -> None:
        self._write()

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.plan))
        partial.replace(self._path)


class _Driver:
    """As much of a driver as Triton needs before it compiles."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CARD, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel-counts", type=Path, required=True, help="file to write")
    parser.addoption("--part", default="0/1", help="which part of the tests, of how many")


def pytest_configure(config: pytest.Config) -> None:
    import torch
    import triton

    part, parts = (int(number) for number in config.getoption("--part").split("/"))
    counts = KernelCounts(config.getoption("--kernel-counts"), part, parts)
    config.pluginmanager.register(counts, "kernel-counts")
    config.addinivalue_line("filterwarnings", "ignore")
    # Triton 3.9 warns where this is unset; the value is its default.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    triton.runtime.driver.set_active(_Driver())
    triton.knobs.runtime.jit_cache_hook = counts.record
    # Kernels leave memory unwritten; indices read from it must stay within bounds.
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        setattr(owner, name, _zeroed(getattr(owner, name)))


def kernels_of(plan: Mapping[str, Planned]) -> dict[str, frozenset[str]]:
    """The kernels of each test, as `pack` takes them."""
    return {test: frozenset(planned["kernels"]) for test, planned in plan.items()}


def _zeroed(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    import torch

    def zeros(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            return allocate(*args, **kwargs).zero_()

    return zeros
