"""Exit statuses, files and settings of the process that the commands share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

REFUSED = 2
"""Exit status without the requested device."""
DEVICE_LOST = 3
"""Exit status after the device stopped responding."""


def has_device(device: str) -> bool:
    """Return whether there is such a device, and say so if there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here (--rehearse runs on the CPU)")
        return False
    return True


def set_threads(threads: int | None) -> None:
    """Set the number of PyTorch threads, unless it is None."""
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file in one step. NaN, which JSON does not have, raises."""
    write_whole(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step: a process that is killed meanwhile leaves the former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
