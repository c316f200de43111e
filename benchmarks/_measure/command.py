"""Options, records and formatting that the measuring commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks._measure.environment import describe_environment, load_average

NO_DEVICE = "no CUDA device here"
REFUSED = 2
"""Exit status without the requested device."""
DEVICE_LOST = 3
"""Exit status after the device stopped responding. A new process can continue with `--resume`."""


def add_run_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add the options of every command that measures time."""
    add = parser.add_argument
    add(
        "--repeats",
        type=_at_least_two,
        default=repeats,
        metavar="N",
        help=f"samples of each implementation, at least 2 (default: {repeats})",
    )
    add("--threads", type=int, metavar="N", help="number of PyTorch threads")
    add("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    add("--refuse-busy", action="store_true", help="exit if the machine is busy")
    add("--out", type=Path, metavar="FOLDER", help="folder for the results")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that run on the CPU and on a GPU."""
    add = parser.add_argument
    add("--device", type=torch.device, default=torch.device("cpu"), metavar="DEVICE",
        help="cpu or cuda (default: cpu)")  # fmt: skip
    add("--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="start nothing that is expected to end later (default: no limit)")  # fmt: skip
    add("--record", metavar="NAME.json", help="file name of the record")
    add("--resume", action="store_true", help="continue the record in the folder")
    add("--commit", metavar="HASH", help="commit to record where there is no git repository")
    add("--rehearse", action="store_true",
        help="tiny shapes on the CPU, the tiled form in place of the kernels")  # fmt: skip


def start_run(options: argparse.Namespace) -> bool:
    """Apply the options that concern the process. Returns False without the requested device."""
    if options.rehearse:
        options.device = torch.device("cpu")
    set_threads(options.threads)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE)
        return False
    return True


def set_threads(threads: int | None) -> None:
    """Set the number of PyTorch threads, unless it is None."""
    if threads is not None:
        torch.set_num_threads(threads)


def look_at_machine(refuse_busy: bool, commit: str | None = None) -> dict[str, object]:
    """Return the environment for the record; warn, or exit, where the machine is busy."""
    load = load_average()
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: the machine is busy (load {load:.2f}); ratios may be off", file=sys.stderr)
        if refuse_busy:
            raise SystemExit("refused: --refuse-busy")
    return describe_environment(commit)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set the precision of float32 matrix products inside the context."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def cell(figure: float | str | None, width: int, digits: int = 0) -> str:
    """Format a figure of a table; a dash for None and for words."""
    if figure is None or isinstance(figure, str):
        return f"{'-':>{width}}"
    return f"{figure:>{width}.{digits}f}"


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON file. NaN, which JSON does not have, raises.

    The file is replaced in one step: a process that is killed while it writes leaves the former
    record whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, for a spread: {text}")
    return number
