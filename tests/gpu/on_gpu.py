"""Where the GPU tests run, and how large an error they accept.

Without a GPU they are skipped. The environment variable `PIXCONTRAST_GPU_TESTS_ON_CPU` runs them on
the CPU, with smaller sizes, so that the tests themselves are tested:

- `tiled` uses the tiled form in place of the fused form.
- `triton`, with `TRITON_INTERPRET=1`, runs the kernels in Triton's interpreter.
- `count` prepares kernel launches that are counted and not made; see `kernel_counts.py`. Results
  are then meaningless.
"""

from __future__ import annotations

import os

import pytest
import torch
from internals import (
    launch_without_a_card,
    matmul_precision,
    plain_products,
    truncate_tf32_operands,
)
from problems import labels, loss_and_gradients, vectors
from tf32 import representable, tf32_bounds

REHEARSAL = os.environ.get("PIXCONTRAST_GPU_TESTS_ON_CPU")
COUNTING = REHEARSAL == "count"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
BACKEND = "tiled" if REHEARSAL == "tiled" else "triton"
INTERPRETED = REHEARSAL == "triton"
CAPABILITY_COUNTED = (9, 0)
"""Kernels are counted for an H100, which has this compute capability and 132 processors."""
FLOOR = 2e-6
"""Relative error that is accepted even where PyTorch's own error happens to be smaller."""
FLOAT32_BOUND = 1e-5
"""Relative error that is accepted for sums in float32 of exact products."""

MODES = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}

if COUNTING:
    launch_without_a_card(CAPABILITY_COUNTED, processors=132)
if INTERPRETED:
    truncate_tf32_operands()


def why_not() -> str | None:
    """Why these tests cannot run here, or None."""
    if REHEARSAL:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return "needs a card of compute capability 8.0 or newer"
    return None


needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def compiled(function):
    """`torch.compile` without graph breaks, by inductor on a GPU.

    Where kernels are counted it is the function itself, which launches the same kernels.
    """
    if COUNTING:
        return function
    backend = "aot_eager" if REHEARSAL else "inductor"
    return torch.compile(function, fullgraph=True, backend=backend)


def size(on_gpu: int, in_rehearsal: int) -> int:
    """A size for a card, or a smaller one for a processor."""
    return in_rehearsal if REHEARSAL else on_gpu


def draw(rows, dim, dtype, *, classes=5, seed=0, in_order=False):
    """Unit vectors and labels on the device, drawn on the CPU; `in_order` sorts them by label."""
    generator = torch.Generator().manual_seed(seed)
    made = vectors(rows, dim, generator, dtype)
    order = labels(rows, classes, generator)
    return made.to(DEVICE), (order.sort().values if in_order else order).to(DEVICE)


def wide(value):
    """The same numbers in float64: tensors, and sequences of them."""
    if isinstance(value, (list, tuple)):
        return type(value)(wide(part) for part in value)
    is_vectors = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if is_vectors else value


def relative_errors(actual, truth):
    """The largest error of each tensor, relative to its largest element, at least 0.001."""
    errors = []
    for a, t in zip(actual, truth, strict=True):
        assert a.shape == t.shape
        assert torch.isfinite(a).all()
        difference = (a.double() - t.double()).abs()
        errors.append(float(difference.max()) / _largest(t) if t.numel() else 0.0)
    return errors


def _largest(truth):
    return max(float(truth.abs().max()), 1e-3) if truth.numel() else 1.0


def compare(arguments, mode, upstream=None, entries_want_gradient=True, **options):
    """Assert that loss and gradients are close to float64, for the accuracy of the mode.

    TF32 gets operands that it represents exactly, so that the loss is as accurate as in float32,
    and gradients have the bound of `tf32_bounds`. In the other modes the reference is the error of
    PyTorch in the same dtype: for the loss that of the dense form, whose 16-bit products are exact;
    for gradients that of PyTorch's own products, which round the coefficients to 16 bits before
    they multiply, as the kernels do.
    """
    dtype, matmul = MODES[mode]
    if mode == "tf32":
        arguments = representable(arguments)
    with matmul_precision(matmul):
        ours = run(BACKEND, arguments, upstream, entries_want_gradient, **options)
    if COUNTING:
        return
    truth = run("dense", wide(arguments), wide(upstream), entries_want_gradient, **options)
    with matmul_precision(matmul):
        dense = run("dense", arguments, upstream, entries_want_gradient, **options)
        with plain_products():
            plain = run("dense", arguments, upstream, entries_want_gradient, **options)
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in dense]
    beside = [*relative_errors(dense[:1], truth[:1]), *relative_errors(plain[1:], truth[1:])]
    errors = list(zip(relative_errors(ours, truth), beside, strict=True))
    floor = torch.finfo(dtype).eps if dtype == torch.bfloat16 and INTERPRETED else FLOOR
    if mode == "tf32":
        assert errors[0][0] <= 2 * errors[0][1] + floor, errors
        assert errors[0][0] < FLOAT32_BOUND, errors
        assert_within_tf32(ours, truth, arguments, upstream, exact_vectors=True, **options)
        return
    for mine, theirs in errors:
        assert mine <= 2 * theirs + floor, errors
        assert mode != "float32" or mine < FLOAT32_BOUND, errors
        assert dtype == torch.float32 or mine <= 4 * torch.finfo(dtype).eps, errors


def assert_within_tf32(actual, truth, arguments, upstream, *, exact_vectors, **options):
    """Assert the bounds of TF32 element by element, beside the error of sums in float32."""
    options = {name: value for name, value in options.items() if name != "reduction"}
    bounds = tf32_bounds(arguments, upstream, exact_vectors=exact_vectors, **options)
    for a, t, bound in zip(actual, truth, bounds, strict=False):
        excess = (a.double() - t).abs() - bound - FLOAT32_BOUND * _largest(t)
        assert a.numel() == 0 or float(excess.max()) <= 0, f"above the bound by {excess.max()}"


def run(backend, arguments, upstream, entries_want_gradient=True, **options):
    """The loss, the gradient of the anchors, and of the entries if they want one."""
    if entries_want_gradient:
        return loss_and_gradients(backend, *arguments, upstream, **options)
    from pixcontrast.functional import info_nce

    leaf = arguments[0].detach().clone().requires_grad_()
    loss = info_nce(leaf, *arguments[1:], backend=backend, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaf, upstream)]
