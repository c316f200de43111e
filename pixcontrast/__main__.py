"""`python -m pixcontrast`: print versions and devices, and check each backend's results.

Each backend is compared with the dense float64 reference on one small problem.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import pixcontrast
from pixcontrast._check import short_dtype
from pixcontrast._triton import Form, choose, import_failure, in_one_line, why_not_fused
from pixcontrast.functional import info_nce

FORMS: tuple[Form, ...] = ("dense", "tiled", "triton")
ROW = "  {:<8} {:<7} {:<9} {:>8} {:>9}  {}"

# The reference uses inputs that are already rounded to the tested dtype, so the errors below
# measure the backend's own rounding. In float32 (TF32 is disabled) the sums have a few dozen terms
# of magnitude up to 10, which gives an error of about 1e-6. In 16-bit dtypes the gradient is
# rounded (bfloat16: 1 in 256), and the kernels also round the softmax weights. An incorrect
# formula, for example a missing factor or an anchor that is its own positive, gives 1e-1 or more.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report. Return 1 if a check failed, else 0."""
    argparse.ArgumentParser(
        prog="python -m pixcontrast",
        description="Print versions, devices and the backend of each device. Check the backends "
        "that run here against the dense formula in float64.",
    ).parse_args(arguments)
    devices = find_devices()
    print("Versions")
    for name, version in versions().items():
        print(f"  {name:<12} {version}")
    print("\nDevices")
    for device in devices:
        print(f"  {device!s:<8} {describe_device(device)}")
        print(f"  {'':<8} {describe_choice(device)}")
    print("\nLoss and gradient against the dense formula in float64: relative errors")
    print(ROW.format("device", "backend", "dtype", "loss", "gradient", ""))
    passed = True
    for device in devices:
        for line, ok in check_device(device):
            print(line, flush=True)
            passed &= ok
    print("\nEvery check passed." if passed else "\nA check FAILED.")
    return 0 if passed else 1


def versions() -> dict[str, str]:
    return {
        "pixcontrast": pixcontrast.__version__,
        "torch": torch.__version__,
        "triton": import_failure() or importlib.import_module("triton").__version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "CUDA runtime": torch.version.cuda or "none (this build of torch has no CUDA)",
    }


def find_devices() -> list[torch.device]:
    """Return the CPU, then every CUDA device, then MPS."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return devices + [torch.device("mps")] * torch.backends.mps.is_available()


def describe_device(device: torch.device) -> str:
    if device.type == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "mps":
        return "Metal"
    found = torch.cuda.get_device_properties(device)
    gibibytes = found.total_memory / 2**30
    return f"{found.name}, compute capability {found.major}.{found.minor}, {gibibytes:.1f} GiB"


def describe_choice(device: torch.device) -> str:
    """Return which backend `"auto"` selects for float32 anchors, and why it is not triton."""
    anchors = torch.zeros(1, 8, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report prints the same reason
        chosen = choose("auto", anchors)
    if chosen == "triton":
        return 'backend="auto" takes triton'
    reason = why_not_fused(anchors)
    why = f"triton cannot run: {reason}" if reason else "triton is interpreted here, for tests"
    return f'backend="auto" takes {chosen} ({why})'


def check_device(device: torch.device) -> Iterator[tuple[str, bool]]:
    """Yield a line of the table for each backend and dtype, and whether the check passed."""
    for form in FORMS:
        reason = why_not_fused(torch.zeros(1, 8, device=device)) if form == "triton" else None
        if reason is not None:
            cells = (form, "", "", "", f"cannot run: {reason}")
            yield ROW.format(str(device), *cells).rstrip(), True
            continue
        for dtype in dtypes_of(device):
            found = compare_with_reference(form, device, dtype)
            expected = f"expected errors up to {TOLERANCES[dtype]:.0e}"
            result = "ok" if found.ok else f"FAILED: {found.failure or expected}"
            errors = (f"{error:.0e}" for error in (found.loss_error, found.gradient_error))
            yield ROW.format(str(device), form, short_dtype(dtype), *errors, result), found.ok


def dtypes_of(device: torch.device) -> list[torch.dtype]:
    # Metal supports bfloat16 on newer systems only.
    return [d for d in TOLERANCES if not (device.type == "mps" and d == torch.bfloat16)]


class Agreement(NamedTuple):
    """Relative errors of a loss and its gradient: infinity for a failure or a non-finite result."""

    loss_error: float
    gradient_error: float
    ok: bool
    failure: str | None = None


def compare_with_reference(form: Form, device: torch.device, dtype: torch.dtype) -> Agreement:
    """Compare a backend with the reference on one problem. A failure is returned, not raised."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        found = loss_and_gradient(form, *(tensor.to(device) for tensor in small_case(dtype)))
    except Exception as error:  # the report continues after any failure
        return Agreement(torch.inf, torch.inf, False, in_one_line(error))
    finally:
        torch.set_float32_matmul_precision(precision)
    loss_error, gradient_error = (
        # A NaN must not pass.
        float(((one - true).abs().max() / true.abs().max()).nan_to_num(torch.inf, torch.inf))
        for one, true in zip(found, true_loss_and_gradient(dtype), strict=True)
    )
    ok = max(loss_error, gradient_error) <= TOLERANCES[dtype]
    return Agreement(loss_error, gradient_error, ok)


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


def true_loss_and_gradient(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    anchors, anchor_labels, bank, bank_labels = small_case(dtype)
    return loss_and_gradient("dense", anchors.double(), anchor_labels, bank.double(), bank_labels)


def loss_and_gradient(
    form: Form, anchors: Tensor, anchor_labels: Tensor, bank: Tensor, bank_labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return loss and anchor gradient against anchors and bank, as float64 on the CPU."""
    with torch.enable_grad():
        leaf = anchors.detach().clone().requires_grad_()
        loss = info_nce(leaf, anchor_labels, (None, bank), (None, bank_labels), backend=form)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach().cpu().double(), gradient.cpu().double()


if __name__ == "__main__":
    sys.exit(main())
