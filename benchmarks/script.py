"""What the scripts that time things share: options, the look at the machine, the record."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.environment import describe_environment
from benchmarks.timing import load_average


def add_run_options(parser: argparse.ArgumentParser, repeats: int) -> None:
    """How to run and where to write: the same for every script that times."""
    add = parser.add_argument
    add(
        "--repeats",
        type=_at_least_two,
        default=repeats,
        metavar="N",
        help=f"runs of each way, in turn, at least 2 (default: {repeats})",
    )
    add("--threads", type=int, metavar="N", help="threads of PyTorch")
    add("--no-memory", dest="memory", action="store_false", help="leave memory out")
    add("--refuse-busy", action="store_true", help="do not run on a busy machine")
    add("--out", type=Path, metavar="FOLDER", help="for what is written")


def split_device(arguments: list[str] | None) -> tuple[str, list[str]]:
    """The device that is asked for, and every other argument: a GPU has a script of its own."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default="cpu")
    known, rest = parser.parse_known_args(arguments)
    return known.device, rest


def look_at_machine(refuse_busy: bool) -> dict[str, object]:
    """The environment for the record; a warning, or the end, where the machine is busy."""
    load = load_average()
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: the machine is busy (load {load:.2f}); ratios may be off", file=sys.stderr)
        if refuse_busy:
            raise SystemExit("refused: --refuse-busy")
    return describe_environment()


def set_threads(threads: int | None) -> None:
    """As many threads as asked for, where anything was asked."""
    if threads is not None:
        torch.set_num_threads(threads)


def cell(figure: float | None, width: int, digits: int) -> str:
    """A figure of a table, or a dash where there is none."""
    return f"{'-':>{width}}" if figure is None else f"{figure:>{width}.{digits}f}"


def write_record(path: Path, record: Mapping[str, object]) -> None:
    """A JSON for people and programs; NaN, which JSON does not know, is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, of which a spread is made: {text}")
    return number
