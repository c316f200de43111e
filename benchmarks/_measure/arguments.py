"""What a command line's words become."""

import argparse
from pathlib import Path


def size_of(text: str) -> tuple[int, int]:
    """(height, width) of HxW."""
    height, _, width = text.partition("x")
    try:
        return positive(height), positive(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected HxW as in 72x96, not {text!r}") from None


def positive(text: str) -> int:
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, not {text!r}")
    return number


def count(text: str) -> int:
    """A number of at least 0."""
    return 0 if text == "0" else positive(text)


def picture_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of a script that draws pictures, with the option where to."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / "figures", metavar="FOLDER")
    return parser
