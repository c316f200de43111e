"""A whole training step of the contrast on a GPU: time, waits, launches and memory.

    python -m benchmarks.step --device cuda --out FOLDER
    python -m benchmarks.step --device cuda --shapes coco-stuff --cases bank

A step starts from embeddings (float32), logits and labels, both of the size of the image, and ends
with the gradient of the embeddings and the batch in the bank (bfloat16). "step" runs under autocast
to bfloat16, launched by Python as in any training loop; "replayed" is the same from a CUDA graph,
"loss" is `info_nce` alone on that step's anchors and entries, "unmined" the step without mining.
"step float32" is without autocast. "authors" is their step as shipped, in float32, whose logits and
bank are as they hold them: of the size of the embedding, and float32. Ways are timed in turn by the
device's own clock. Waits are what PyTorch's own alarm counts, launches what its profiler sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import SHAPES
from benchmarks.cuda_timing import DeviceLostError, Run, extra_memory, measure, now, release
from benchmarks.device import describe_device
from benchmarks.environment import describe_environment
from benchmarks.gpu_cases import DEVICE_LOST, NO_DEVICE, REFUSED
from benchmarks.gpu_launches import captured, count_launches, count_waits
from benchmarks.script import cell, write_record
from benchmarks.step_ways import CASES, Case

Row = dict[str, Any]
RECORD = "step_gpu.json"


def main(arguments: list[str] | None = None) -> int:
    """Time every case until the budget is used up; 0, `REFUSED` or `DEVICE_LOST`."""
    options = _parser().parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE)
        return REFUSED
    start = now()
    rows: list[Row] = []
    record: Row = {
        "environment": {
            **describe_environment(options.commit),
            **describe_device(options.device),
        },
        "rows": rows,
    }
    status = 0
    print(_head(), flush=True)
    for name in options.shapes:
        for case in options.cases:
            row: Row = {"name": name, "case": case, "shape": asdict(SHAPES[name]), "note": None}
            row["measured"] = {}
            rows.append(row)
            if now() - start > options.budget:
                row["note"] = "no time left"
            else:
                status = _fill(row, options)
            _write(options.out, record)
            print("\n".join(_lines(row)), flush=True)
            if status != 0:
                return status
    return status


def _fill(row: Row, options: argparse.Namespace) -> int:
    try:
        release(options.device)
        torch.manual_seed(0)
        problem = Case(
            SHAPES[row["name"]],
            row["case"],
            options.device,
            bank_dtype=torch.bfloat16,
            full_logits=True,
        )
        row["measured"] = _measure(_ways(problem), options)
        row["anchors"] = problem.anchors()
    except DeviceLostError as lost:
        row["measured"] = getattr(lost, "measured", {})
        row["note"] = f"the device was lost: {lost}"
        return DEVICE_LOST
    except Exception as error:  # of this case: the others are still to be measured
        row["note"] = f"failed: {type(error).__name__}: {error}"
    return 0


def _ways(problem: Case) -> dict[str, Run]:
    """What is timed, by name; the graph is captured when it is first run."""
    device = problem.device
    step = _under_autocast(problem.way("step"), device)
    graph: list[Run] = []

    def replay() -> object:
        if not graph:
            graph.append(captured(step, device))
        return graph[0]()

    runs: dict[str, Run] = {
        "step": step,
        "replayed": replay,
        "loss": _under_autocast(problem.way("loss"), device),
        "step float32": problem.way("step"),
    }
    if problem.case == "mining":
        return {**runs, "unmined": _under_autocast(problem.way("unmined"), device)}
    authors = problem.way("authors")
    return {**runs, "authors": authors, "authors autocast": _under_autocast(authors, device)}


def _under_autocast(run: Run, device: torch.device) -> Run:
    def under_autocast() -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return run()

    return under_autocast


def _measure(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, Any]:
    device = options.device
    found: dict[str, Any] = measure(runs, options.repeats, device)
    reference = found["step"].get("seconds")
    for name, one in found.items():
        if "seconds" not in one:
            continue
        one["to_step"] = one["seconds"] / reference if reference else None
        one["extra_mb"] = extra_memory(runs[name], device)
        one["waits"] = _asked(count_waits, runs[name], device)
        one["launches"] = _asked(count_launches, runs[name], device)
    return found


def _asked(
    count: Callable[[Run, torch.device], int | None], run: Run, device: torch.device
) -> int | str | None:
    try:
        return count(run, device)
    except Exception as error:  # a count is not worth the times
        return f"failed: {type(error).__name__}: {error}"


def _head() -> str:
    return (
        f"{'shape, case':<24}{'way':<18}{'ms':>9}{'x step':>8}{'spread':>8}{'extra MB':>10}"
        f"{'waits':>7}{'launches':>10}"
    )


def _lines(row: Row) -> list[str]:
    title = f"{row['name']}, {row['case']}"
    lines = []
    for way, one in row["measured"].items():
        if "seconds" in one:
            figures = (
                f"{1000 * one['seconds']:>9.3f}{cell(one['to_step'], 8, 2)}"
                f"{cell(one['spread'], 8, 2)}{cell(one['extra_mb'], 10, 0)}"
                f"{_count(one['waits'], 7)}{_count(one['launches'], 10)}"
            )
        else:
            figures = f" {one['status']}"
        lines.append(f"{title:<24}{way:<18}{figures}")
        title = ""
    if row["note"] is not None:
        lines.append(f"{title:<24}{row['note']}")
    return lines


def _count(found: int | str | None, width: int) -> str:
    return f"{found if isinstance(found, int) else '-':>{width}}"


def _write(folder: Path | None, record: Row) -> None:
    if folder is not None:
        write_record(folder / RECORD, record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step --device cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = ["cityscapes", "coco-stuff"]
    add("--shapes", nargs="+", choices=list(SHAPES), default=names, metavar="NAME")
    add("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    add("--repeats", type=int, default=15, metavar="N", help="samples of each way (default: 15)")
    add("--budget", type=float, default=120.0, metavar="SECONDS", help="begin nothing after it")
    add("--out", type=Path, metavar="FOLDER", help=f"for {RECORD}")
    add("--commit", help="for the record, where there is no git")
    add("--device", type=torch.device, default=torch.device("cuda"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
