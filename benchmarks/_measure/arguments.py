"""Types of command-line arguments."""

from __future__ import annotations

import argparse


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
