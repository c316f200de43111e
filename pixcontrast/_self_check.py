"""Compare each backend with the dense float64 reference on one small problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pixcontrast._triton import Form, in_one_line
from pixcontrast.functional import info_nce

# The reference uses inputs that are already rounded to the tested dtype, so the errors below
# measure the backend's own rounding. In float32 (TF32 is disabled) the sums have a few dozen terms
# of magnitude up to 10, which gives an error of about 1e-6. In 16-bit dtypes the gradient is
# rounded (bfloat16: 1 in 256), and the kernels also round the softmax weights. An incorrect
# formula, for example a missing factor or an anchor that is its own positive, gives 1e-1 or more.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class Agreement:
    """Difference between one backend and the reference, for one dtype on one device.

    Attributes:
        loss_error: relative error of the loss; infinite if the loss is not finite or the call
            failed.
        gradient_error: error of the anchors' gradient, relative to its largest element.
        failure: message of the exception that the backend raised, or None.
        tolerance: largest error that passes.
    """

    loss_error: float
    gradient_error: float
    failure: str | None
    tolerance: float

    @property
    def ok(self) -> bool:
        return max(self.loss_error, self.gradient_error) <= self.tolerance


def compare_with_reference(form: Form, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Run the small problem with a backend and with the reference.

    An exception of the backend is reported as a failure.
    """
    tolerance = TOLERANCES[dtype]
    anchors, anchor_labels, bank, bank_labels = (tensor.to(device) for tensor in small_case(dtype))
    try:
        with matmul_precision("highest"):
            actual = _loss_and_gradient(form, anchors, anchor_labels, bank, bank_labels)
    except Exception as error:  # the report continues after any failure
        return Agreement(torch.inf, torch.inf, in_one_line(error), tolerance)
    expected = _true_loss_and_gradient(dtype)
    loss_error, gradient_error = (
        _relative_error(*pair) for pair in zip(actual, expected, strict=True)
    )
    return Agreement(loss_error, gradient_error, None, tolerance)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set `torch.set_float32_matmul_precision` inside the context and restore it afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def small_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 48 anchors, their labels, a bank of 80 entries and its labels, on the CPU.

    There are 5 classes; some labels are ignored.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(128, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (128,), generator=generator)
    labels[::9] = 255
    labels[4::25] = -1
    # Add a direction per class, as training does: the losses then have different magnitudes.
    vectors[:, :5] += 3.0 * torch.nn.functional.one_hot(labels.clamp(0, 4), 5)
    vectors = torch.nn.functional.normalize(vectors, dim=1).to(dtype)
    return vectors[:48], labels[:48], vectors[48:], labels[48:]


def _true_loss_and_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    anchors, anchor_labels, bank, bank_labels = small_case(dtype)
    return _loss_and_gradient("dense", anchors.double(), anchor_labels, bank.double(), bank_labels)


def _loss_and_gradient(
    form: Form, anchors: Tensor, anchor_labels: Tensor, bank: Tensor, bank_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return loss and anchor gradient against anchors and bank, as float64 on the CPU."""
    with torch.enable_grad():
        leaf = anchors.detach().clone().requires_grad_()
        loss = info_nce(leaf, anchor_labels, (None, bank), (None, bank_labels), backend=form)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach().cpu().double(), gradient.cpu().double()


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    error = float((actual - expected).abs().max() / expected.abs().max())
    return torch.inf if error != error else error  # a NaN must not pass
