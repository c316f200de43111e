"""What the loss costs: time and memory of one forward and backward, against the alternatives.

    python -m benchmarks.hot_path
    python -m benchmarks.hot_path --shapes 975x47500x256 --repeats 9
    python -m benchmarks.hot_path --redraw benchmarks/results/hot_path.json
    python -m benchmarks.hot_path --device cuda --help

Time is compared within one run, all ways in turn; the floor is two plain matrix products of the
same size. Memory is what a process of its own needs beyond its inputs. What is measured on a GPU is
`benchmarks/gpu_hot_path.py`, with options of its own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import gpu_hot_path
from benchmarks.curves import save_curves
from benchmarks.script import (
    add_run_options,
    cell,
    look_at_machine,
    set_threads,
    split_device,
    write_record,
)
from benchmarks.timing import alternate, measured_peak, peak_memory, summarise
from benchmarks.variants import NAMES, Problem, Shape, variants

DEFAULT_SHAPES = (
    "975x19000x256",
    "975x47500x256",
    "975x95000x256",
    "975x190000x256",
    "975x475000x256",
    "975x1000000x256",
    "244x47500x256",
    "488x47500x256",
    "1950x47500x256",
    "512x100000x128",
)
MOST_FOR_ALL = 100_000_000
"""Above so many similarities only the floor and the tiled form run: the ways that hold them all
take gigabytes, and mining, which holds a part at a time, takes long."""


def main(arguments: list[str] | None = None) -> None:
    """Time and weigh every way on every shape: a table, a JSON and a picture."""
    device, rest = split_device(arguments)
    if device == "cuda":
        raise SystemExit(gpu_hot_path.main(rest))
    options = _parser().parse_args(arguments)
    set_threads(options.threads)
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options.peak, options.shapes[0])))
        return
    if options.redraw is not None:
        record = json.loads(options.redraw.read_text())
        _draw((options.out or options.redraw.parent) / f"{options.redraw.stem}.png", record["rows"])
        return
    environment = look_at_machine(options.refuse_busy)
    rows = [_measure(shape, options) for shape in tqdm(options.shapes, leave=False, disable=None)]
    print(_table(rows))
    if options.out is not None:
        path = options.out / "hot_path.json"
        write_record(path, {"environment": environment, "rows": rows})
        print(f"{path} written")
        _draw(path.with_suffix(".png"), rows)


def _measure(shape: Shape, options: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in options.variants if not _too_large(name, shape)]
    runs = {name: run for name, run in variants(Problem.draw(shape)).items() if name in names}
    measured = summarise(alternate(runs, options.repeats), ("floor", "tiled"))
    for name, one in measured.items():
        one["extra_mb"] = _peak(name, shape) if options.memory else None
    return {**asdict(shape), "measured": measured}


def _too_large(name: str, shape: Shape) -> bool:
    return name not in ("floor", "tiled") and shape.anchors * shape.entries > MOST_FOR_ALL


def _peak(name: str, shape: Shape) -> float | None:
    text = f"{shape.anchors}x{shape.entries}x{shape.dim}x{shape.classes}"
    return peak_memory("benchmarks.hot_path", "--peak", name, "--shapes", text)


def _peak_of_one(name: str, shape: Shape) -> float:
    # First on a tiny problem: threads, libraries and compiled code are not the run's own.
    tiny = Shape(min(shape.anchors, 64), 4 * shape.classes, shape.dim, shape.classes)
    variants(Problem.draw(tiny))[name]()
    return measured_peak(variants(Problem.draw(shape))[name])


def _draw(path: Path, rows: list[dict[str, Any]]) -> None:
    save_curves(path, rows)
    print(f"{path} written")


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'M x N x D':<22}{'way':<10}{'ms':>9}{'x floor':>9}{'x tiled':>9}{'spread':>8}"
        f"{'extra MB':>10}",
    ]
    for row in rows:
        title = f"{row['anchors']} x {row['entries']} x {row['dim']}"
        for name, one in row["measured"].items():
            lines.append(
                f"{title:<22}{name:<10}{1000 * one['seconds']:>9.0f}"
                f"{cell(one['to_floor'], 9, 2)}{cell(one['to_tiled'], 9, 2)}"
                f"{one['spread']:>8.2f}{cell(one['extra_mb'], 10, 0)}"
            )
            title = ""
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hot_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    shapes = [_shape(text) for text in DEFAULT_SHAPES]
    add("--shapes", nargs="+", type=_shape, metavar="MxNxD[xC]", default=shapes)
    add("--variants", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    add_run_options(parser, repeats=7)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: see --device cuda --help")
    add("--redraw", type=Path, metavar="JSON", help="draw the picture of a run that is done")
    add("--peak", choices=NAMES, help=argparse.SUPPRESS)
    return parser


def _shape(text: str) -> Shape:
    try:
        return Shape(*(int(part) for part in text.split("x")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected MxNxD or MxNxDxC, not {text!r}") from None


if __name__ == "__main__":
    main()
