"""`python -m pixcontrast`: print versions, devices and backends, and check the results."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence

import torch

import pixcontrast
from pixcontrast._self_check import TOLERANCES, compare_with_reference
from pixcontrast._triton import Form, choose, import_failure, why_not_fused

FORMS: tuple[Form, ...] = ("dense", "tiled", "triton")
ROW = "  {:<8} {:<7} {:<9} {:>8} {:>9}  {}"


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
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


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
    reason = why_not_fused(anchors)
    if chosen == "triton":
        return 'backend="auto" takes triton'
    if reason is None:
        return f'backend="auto" takes {chosen} (triton is interpreted here, for tests)'
    return f'backend="auto" takes {chosen} (triton cannot run: {reason})'


def check_device(device: torch.device) -> Iterator[tuple[str, bool]]:
    """Yield a line of the table for each backend and dtype, and whether the check passed."""
    for form in FORMS:
        reason = why_not_fused(torch.zeros(1, 8, device=device)) if form == "triton" else None
        if reason is not None:
            yield _row(device, form, "", "", "", f"cannot run: {reason}"), True
            continue
        for dtype in dtypes_of(device):
            found = compare_with_reference(form, device, dtype)
            result = "ok" if found.ok else f"FAILED: {found.failure or _expected(found.tolerance)}"
            errors = (f"{error:.0e}" for error in (found.loss_error, found.gradient_error))
            yield _row(device, form, str(dtype).removeprefix("torch."), *errors, result), found.ok


def dtypes_of(device: torch.device) -> list[torch.dtype]:
    # Metal supports bfloat16 on newer systems only.
    return [d for d in TOLERANCES if not (device.type == "mps" and d == torch.bfloat16)]


def _expected(tolerance: float) -> str:
    return f"expected errors up to {tolerance:.0e}"


def _row(device: torch.device, *cells: str) -> str:
    return ROW.format(str(device), *cells).rstrip()


if __name__ == "__main__":
    sys.exit(main())
