"""A kernel that is launched directly is the one that Triton selects, with the same arguments."""

import itertools
import os
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import CompiledKernel  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from pixcontrast import _launch  # noqa: E402


class Pair(NamedTuple):
    values: Any
    stride: Any


@triton.jit(do_not_specialize=["size"])
def example_kernel(tensor, pair, size, number, wide: tl.int64, block: tl.constexpr):
    pass


class NoKernel(CompiledKernel):
    """A compiled kernel that notes its launches."""

    name = src = function = packed_metadata = module = None

    def __init__(self, launched):
        self.launched = launched

    def _init_handles(self):
        pass

    def run(self, *arguments):
        # The metadata of a launch are made anew each time.
        self.launched.append((self, *arguments[:6], *arguments[7:]))


@pytest.fixture
def launched(monkeypatch):
    """Every launch, as the kernel and its arguments; each variant has a kernel of its own."""
    if not hasattr(JITFunction, "_do_compile"):
        pytest.skip("another version of Triton")
    made = []

    def compile_nothing(self, key, signature, device, *_):
        return self.device_caches[device][0].setdefault(key, NoKernel(made))

    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 7,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    monkeypatch.setattr(_launch, "_compiled", {})
    yield made
    example_kernel.device_caches.clear()


INTEGERS = (0, 1, 2, 16, 17, 48, -1, -16, 2**31 - 1, 2**31, 2**40, 2**40 + 1, 2**63)
TENSORS = [
    torch.zeros(64, dtype=dtype)[start:]
    for dtype in (torch.float32, torch.bfloat16)
    for start in (0, 1, 8)
]
CHOICES = [
    [*TENSORS, None, torch.nn.Parameter(TENSORS[0])],
    [Pair(*pair) for pair in itertools.product([*TENSORS[:3], None], [*INTEGERS[:6], None])],
    INTEGERS[:-1],
    [*INTEGERS, 0.5, 1.0, True, False, None],
    INTEGERS[:5],
]


def test_it_is_the_kernel_that_triton_selects(launched, monkeypatch):
    drawn = random.Random(0)
    run, by_triton, direct = JITFunction.run, [], 0
    monkeypatch.setattr(JITFunction, "run", lambda *a, **k: by_triton.append(1) or run(*a, **k))
    for _ in range(1000):
        arguments = [values[0] for values in CHOICES]
        for index in drawn.sample(range(len(CHOICES)), 2):
            arguments[index] = drawn.choice(CHOICES[index])
        block, warps = drawn.choice([16, 32]), drawn.choice([4, 8])
        registers = {"maxnreg": 255} if warps == 8 else {}
        by_triton.clear()
        variant = (0, block, warps, *registers)
        chosen = {"num_warps": warps, **registers}
        _launch.launch(example_kernel, (3,), arguments, (block,), variant, **chosen)
        direct += not by_triton
        # The order is part of Triton's key.
        options = {**_launch.LAUNCH_OPTIONS, "num_warps": warps, "num_stages": 3, **registers}
        example_kernel[(3,)](*arguments, block, **options)
        found, expected = launched[-2:]
        assert len(found) == len(expected)
        # The kernel, the grid, the stream, the hooks, and the arguments.
        assert all(one is other for one, other in zip(found, expected, strict=True))
    assert 300 < direct < 700


def test_a_launch_on_a_tensor_passes_constants_and_options(launched):
    tensor, pair = TENSORS[0], Pair(TENSORS[1], 3)
    for _ in range(2):
        _launch.launch_on(
            tensor, example_kernel, (3,), tensor, pair, 5, 2, 7, block=16, num_warps=8
        )
    first, second = launched
    assert first == second
    assert first[1:4] == (3, 1, 1)
    assert first[-6:] == (tensor, pair, 5, 2, 7, 16)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", "ieee"),
        ("torch.set_float32_matmul_precision('high')", "tf32"),
        ("torch.backends.cuda.matmul.allow_tf32 = True", "tf32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
        ("torch.backends.fp32_precision = 'tf32'", "tf32"),
    ],
)
def test_float32_products_have_the_precision_that_pytorch_is_set_to(setting, expected):
    """In a process of its own: PyTorch raises an error once both kinds of settings are used."""
    if "fp32_precision" in setting and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("PyTorch before 2.9 has the older settings only")
    layout = "from pixcontrast._info_nce.fused.layout import product_precision"
    code = f"import torch\n{layout}\n{setting}\nprint(product_precision(torch.float32))"
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    assert found.stdout.decode().strip() == expected
