"""How far a backend on a device is from the textbook formula in float64, on one small case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pixcontrast._equation.backends import Form
from pixcontrast._equation.trial import in_one_line
from pixcontrast.functional import info_nce

# The case below is rounded to the dtype before the truth is made, so that what is left is the
# rounding inside. Float32 products are exact to 24 bits here (no TF32, see `check_backend`): sums
# of a few dozen terms, similarities up to 10, an error of about 1e-6. The narrow dtypes round
# the gradient (bfloat16 to 1 in 256) and, in the kernels, the weights of the entries. A wrong
# formula (a missing factor, an anchor as its own positive) is off by 1e-1 and more.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


@dataclass(frozen=True)
class Agreement:
    """One backend in one dtype on one device, beside the truth.

    Attributes:
        loss_error: relative, infinite where the loss is not finite or was not made.
        gradient_error: of the anchors' gradient, relative to its largest element.
        failure: what was raised, or None.
        tolerance: what either error may come to.
    """

    loss_error: float
    gradient_error: float
    failure: str | None
    tolerance: float

    @property
    def ok(self) -> bool:
        return max(self.loss_error, self.gradient_error) <= self.tolerance


def check_backend(form: Form, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Runs the small case both ways; never raises for what the backend does."""
    tolerance = TOLERANCES[dtype]
    anchors, anchor_labels, bank, bank_labels = (tensor.to(device) for tensor in small_case(dtype))
    try:
        with matmul_precision("highest"):
            actual = _loss_and_gradient(form, anchors, anchor_labels, bank, bank_labels)
    except Exception as error:  # whatever it is, the report goes on
        return Agreement(torch.inf, torch.inf, in_one_line(error), tolerance)
    truth = _true_loss_and_gradient(dtype)
    loss_error, gradient_error = (_relative_error(*p) for p in zip(actual, truth, strict=True))
    return Agreement(loss_error, gradient_error, None, tolerance)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """How float32 is multiplied, inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def small_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """48 anchors and a bank of 80 with their labels, on the CPU: 5 classes, some ignored."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(128, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (128,), generator=generator)
    labels[::9] = 255
    labels[4::25] = -1
    # Classes have directions, as after some training: losses are neither tiny nor all alike.
    vectors[:, :5] += 3.0 * torch.nn.functional.one_hot(labels.clamp(0, 4), 5)
    vectors = torch.nn.functional.normalize(vectors, dim=1).to(dtype)
    return vectors[:48], labels[:48], vectors[48:], labels[48:]


def _true_loss_and_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    anchors, anchor_labels, bank, bank_labels = small_case(dtype)
    return _loss_and_gradient("dense", anchors.double(), anchor_labels, bank.double(), bank_labels)


def _loss_and_gradient(
    form: Form, anchors: Tensor, anchor_labels: Tensor, bank: Tensor, bank_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss against the anchors themselves and the bank, on the CPU and in float64."""
    with torch.enable_grad():
        leaf = anchors.detach().clone().requires_grad_()
        loss = info_nce(leaf, anchor_labels, (None, bank), (None, bank_labels), backend=form)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach().cpu().double(), gradient.cpu().double()


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    error = float((actual - expected).abs().max() / expected.abs().max())
    return error if error == error else torch.inf  # NaN is not small
