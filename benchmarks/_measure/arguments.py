"""Options and types of command-line arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def size_of(text: str) -> tuple[int, int]:
    """Parse HxW as (height, width)."""
    height, _, width = text.partition("x")
    try:
        return positive(height), positive(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HxW as in 72x96; got {text!r}") from None


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number; got {text!r}")
    return number


def count(text: str) -> int:
    """Parse an integer of at least 0."""
    return 0 if text == "0" else positive(text)


def command_parser(name: str, description: str | None, **options: str) -> argparse.ArgumentParser:
    """Make the parser of a command, with its docstring as the description."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,  # type: ignore[arg-type]
    )


def add_run_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Add the options of every command that measures time."""
    add = parser.add_argument
    add("--repeats", type=_at_least_two, default=repeats, metavar="N",
        help=f"samples of each implementation, at least 2 (default: {repeats})")  # fmt: skip
    add("--threads", type=int, metavar="N", help="number of PyTorch threads")
    add("--no-memory", dest="memory", action="store_false", help="do not measure memory")
    add("--out", type=Path, metavar="FOLDER", help="folder for the results")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that run on the CPU and on a GPU."""
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    add("--budget", type=float, default=float("inf"), metavar="SECONDS",
        help="start nothing that is expected to end later (default: no limit)")  # fmt: skip
    add("--rehearse", action="store_true",
        help="tiny shapes on the CPU, the tiled form in place of the kernels")  # fmt: skip


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, for a spread: {text}")
    return number
