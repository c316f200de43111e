"""Where the tests that need a GPU run, and how close is close there.

Without a GPU they are skipped. `PIXCONTRAST_GPU_TESTS_ON_CPU=tiled` runs them on the CPU with that
backend in the place of the fused one and with smaller sizes, so that the tests themselves are
tested; with `triton` beside `TRITON_INTERPRET=1` the interpreter runs the kernels.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from problems import labels, loss_and_gradients, vectors

from pixcontrast._info_nce import dense as dense_form
from pixcontrast._self_check import matmul_precision

REHEARSAL = os.environ.get("PIXCONTRAST_GPU_TESTS_ON_CPU")
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
BACKEND = REHEARSAL or "triton"
CUTS_OFF = REHEARSAL == "triton"
"""The interpreter cuts off what does not fit into bfloat16, where a GPU and PyTorch round."""
FLOOR = 2e-6
"""Relative; where PyTorch's own error happens to be nothing, so must not ours be."""

MODES = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "float32": (torch.float32, "highest"),
}


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


def size(on_gpu: int, in_rehearsal: int) -> int:
    """A size that a card takes with ease, and one for a processor."""
    return in_rehearsal if REHEARSAL else on_gpu


def draw(rows, dim, dtype, *, classes=5, seed=0, in_order=False):
    """Unit vectors and labels on the device, drawn on the CPU; ordered as a bank holds them."""
    generator = torch.Generator().manual_seed(seed)
    made = vectors(rows, dim, generator, dtype)
    order = labels(rows, classes, generator)
    return made.to(DEVICE), (order.sort().values if in_order else order).to(DEVICE)


def wide(thing):
    """The same numbers in float64, tensors and sequences of them."""
    if isinstance(thing, (list, tuple)):
        return type(thing)(wide(part) for part in thing)
    is_vectors = isinstance(thing, torch.Tensor) and thing.is_floating_point()
    return thing.double() if is_vectors else thing


def relative_errors(actual, truth):
    """Of each tensor, to its largest element, but to a thousandth at the least."""
    errors = []
    for a, t in zip(actual, truth, strict=True):
        assert a.shape == t.shape
        assert torch.isfinite(a).all()
        difference = (a.double() - t.double()).abs()
        largest = max(float(t.abs().max()), 1e-3) if t.numel() else 1.0
        errors.append(float(difference.max()) / largest if t.numel() else 0.0)
    return errors


def compare(arguments, mode, upstream=None, entries_want_gradient=True, **options):
    """Loss and gradients against float64, beside what PyTorch reaches in the same dtype.

    The loss beside the dense form, whose 16-bit products are exact; gradients beside PyTorch's
    own products, which round the coefficients to 16 bits before they multiply, as ours do.
    """
    dtype, matmul = MODES[mode]
    truth = run("dense", wide(arguments), wide(upstream), entries_want_gradient, **options)
    with matmul_precision(matmul):
        ours, dense = (
            run(backend, arguments, upstream, entries_want_gradient, **options)
            for backend in (BACKEND, "dense")
        )
        with plain_products():
            plain = run("dense", arguments, upstream, entries_want_gradient, **options)
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in dense]
    beside = [*relative_errors(dense[:1], truth[:1]), *relative_errors(plain[1:], truth[1:])]
    errors = list(zip(relative_errors(ours, truth), beside, strict=True))
    floor = torch.finfo(dtype).eps if dtype == torch.bfloat16 and CUTS_OFF else FLOOR
    for mine, theirs in errors:
        assert mine <= 2 * theirs + floor, errors
        assert mode != "float32" or mine < 1e-5, errors
        assert dtype == torch.float32 or mine <= 4 * torch.finfo(dtype).eps, errors


@contextmanager
def plain_products():
    """Inside, the dense form multiplies as PyTorch does: operands, results and both gradients
    are of the dtype that came, and the rest is float32.
    """
    with (
        patch.object(
            dense_form, "_operand", lambda problem, given: given.to(problem.product_dtype)
        ),
        patch.object(
            dense_form, "_product", lambda anchors, entries: (anchors @ entries.T).float()
        ),
    ):
        yield


def run(backend, arguments, upstream, entries_want_gradient=True, **options):
    """The loss, the gradient of the anchors, and of the entries where it is wanted."""
    if entries_want_gradient:
        return loss_and_gradients(backend, *arguments, upstream, **options)
    from pixcontrast.functional import info_nce

    leaf = arguments[0].detach().clone().requires_grad_()
    loss = info_nce(leaf, *arguments[1:], backend=backend, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaf, upstream)]
