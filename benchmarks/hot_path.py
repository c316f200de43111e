"""What the loss costs: time and memory of one forward and backward, against the alternatives.

    python -m benchmarks.hot_path
    python -m benchmarks.hot_path --shapes 975x47500x256 --repeats 9

Time is compared within one run, all ways in turn; the floor is two plain matrix products of the
same size. Memory is what a process of its own needs beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.environment import describe_environment
from benchmarks.timing import alternate, load_average, measured_peak, peak_memory, ratio, spread
from benchmarks.variants import Problem, Shape, variants

DEFAULT_SHAPES = ("975x19000x256", "975x47500x256", "975x95000x256", "975x190000x256")
MOST_FOR_DENSE = 100_000_000
"""Above so many similarities the ways that hold them all are left out: they take gigabytes."""
NAMES = ("floor", "tiled", "compiled", "dense", "authors")


def main(arguments: list[str] | None = None) -> None:
    """Time and weigh every way on every shape: a table and a JSON."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.peak is not None:
        print(json.dumps(_peak_of_one(options.peak, options.shapes[0])))
        return
    load = load_average()
    if load > 0.5 * (os.cpu_count() or 1):
        print(f"warning: the machine is busy (load {load:.2f}); ratios may be off", file=sys.stderr)
        if options.refuse_busy:
            raise SystemExit("refused: --refuse-busy")
    environment = describe_environment()
    rows = [_measure(shape, options) for shape in tqdm(options.shapes, leave=False, disable=None)]
    print(_table(rows))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment, "rows": rows}
        path = options.out / "hot_path.json"
        path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        print(f"{path} written")


def _measure(shape: Shape, options: argparse.Namespace) -> dict[str, object]:
    names = [name for name in options.variants if not _too_large(name, shape)]
    runs = {name: run for name, run in variants(Problem.draw(shape)).items() if name in names}
    seconds = alternate(runs, options.repeats)
    measured: dict[str, dict[str, float | None]] = {}
    for name, times in seconds.items():
        measured[name] = {
            "seconds": statistics.median(times),
            "to_floor": ratio(times, seconds["floor"]),
            "spread": spread(times),
            "extra_mb": _peak(name, shape) if options.memory else None,
        }
    return {
        "anchors": shape.anchors,
        "entries": shape.entries,
        "dim": shape.dim,
        "classes": shape.classes,
        "measured": measured,
    }


def _too_large(name: str, shape: Shape) -> bool:
    return name not in ("floor", "tiled") and shape.anchors * shape.entries > MOST_FOR_DENSE


def _peak(name: str, shape: Shape) -> float | None:
    text = f"{shape.anchors}x{shape.entries}x{shape.dim}x{shape.classes}"
    return peak_memory("benchmarks.hot_path", "--peak", name, "--shapes", text)


def _peak_of_one(name: str, shape: Shape) -> float:
    # First on a tiny problem: threads, libraries and compiled code are not the run's own.
    tiny = Shape(min(shape.anchors, 64), 4 * shape.classes, shape.dim, shape.classes)
    variants(Problem.draw(tiny))[name]()
    return measured_peak(variants(Problem.draw(shape))[name])


def _table(rows: list[dict[str, object]]) -> str:
    lines = [
        f"{'M x N x D':<22}{'way':<10}{'ms':>9}{'x floor':>9}{'spread':>8}{'extra MB':>10}",
    ]
    for row in rows:
        title = f"{row['anchors']} x {row['entries']} x {row['dim']}"
        measured = row["measured"]
        assert isinstance(measured, dict)
        for name, one in measured.items():
            extra = "-" if one["extra_mb"] is None else f"{one['extra_mb']:.0f}"
            lines.append(
                f"{title:<22}{name:<10}{1000 * one['seconds']:>9.0f}{one['to_floor']:>9.2f}"
                f"{one['spread']:>8.2f}{extra:>10}"
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
    add("--repeats", type=int, default=7, help="runs of each way, in turn (default: 7)")
    add("--threads", type=int, metavar="N", help="threads of PyTorch")
    add("--no-memory", dest="memory", action="store_false", help="leave memory out")
    add("--refuse-busy", action="store_true", help="do not run on a busy machine")
    add("--out", type=Path, metavar="FOLDER", help="for the JSON")
    add("--peak", choices=NAMES, help=argparse.SUPPRESS)
    return parser


def _shape(text: str) -> Shape:
    try:
        return Shape(*(int(part) for part in text.split("x")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected MxNxD or MxNxDxC, not {text!r}") from None


if __name__ == "__main__":
    main()
