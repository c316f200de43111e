"""What the loss costs on a GPU: time and memory of each way, beside what the card can do.

    python -m benchmarks.hot_path --device cuda --out FOLDER
    python -m benchmarks.hot_path --device cuda --cases 1024x190000x256 512xitselfx256 --modes tf32

Ways are timed in turn within one run, forward alone and forward and backward, by the device's own
clock. Rates count 4·M·N·D flops for forward and backward against a bank and 6·M²·D against itself,
whatever a way computes twice; shares are of a large square product (`of_square`) and of the two
products of the same problem (`of_products`), both timed in turn with the ways. Memory is the peak
of what the allocator gave out, less what was there. The record is written after each case.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_rates
from benchmarks.cuda_timing import (
    DeviceLostError,
    Run,
    extra_memory,
    in_words,
    measure,
    now,
    release,
)
from benchmarks.device import describe_device
from benchmarks.environment import describe_environment
from benchmarks.gpu_cases import (
    DEVICE_LOST,
    NO_DEVICE,
    REFUSED,
    choose_cases,
    parse_case_shape,
)
from benchmarks.gpu_table import row_lines, table_head
from benchmarks.gpu_ways import DENSE_WAYS, MODES, WAYS, Case, Drawn, ways
from benchmarks.script import write_record
from pixcontrast._self_check import matmul_precision

Row = dict[str, Any]
RECORD = "hot_path_gpu.json"
SECONDS_OF_A_CASE = 2.0
SECONDS_OF_COMPILING = 25.0
"""What a case is expected to take at most, without torch.compile, and what that adds."""


def main(arguments: list[str] | None = None) -> int:
    """Time every case until the budget is used up; 0, `REFUSED` or `DEVICE_LOST`."""
    options = _parser().parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print(NO_DEVICE)
        return REFUSED
    start = now()
    deadline = start + options.budget
    record = _begin(options)
    rows: list[Row] = record["rows"]
    done = {_key(row) for row in rows}
    cases = choose_cases(options.shapes, options.modes)
    waiting = [case for case in cases if _key(asdict(case)) not in done]
    print("\n".join(table_head()), flush=True)
    for number, (case, is_headline) in enumerate((case, cases[case]) for case in waiting):
        row: Row = {**asdict(case), "flops": case.useful_flops, "measured": {}}
        rows.append(row)
        if now() > deadline:
            row["note"] = "no time left"
            continue
        row["note"] = "did not finish"
        _write(options.out, record)  # A process that dies here is not to come back to this case.
        to_come = (len(waiting) - number) * SECONDS_OF_A_CASE
        compiles = is_headline or deadline - now() > to_come + SECONDS_OF_COMPILING
        try:
            row["measured"] = _measure(case, options, deadline, compiles)
            row["note"] = None
        except DeviceLostError as lost:
            row["measured"] = _arrange(case, getattr(lost, "measured", {}), {})
            row["note"] = f"the device was lost: {lost}"
            _write(options.out, record)
            print(f"{case}: {row['note']}", flush=True)
            return DEVICE_LOST
        _write(options.out, record)
        print("\n".join(row_lines(row)), flush=True)
    left_out = sum(row["note"] == "no time left" for row in rows)
    record["seconds"] = now() - start
    _write(options.out, record)
    print(f"{len(rows) - left_out} of {len(rows)} cases in {record['seconds']:.0f} s")
    return 0


def _measure(
    case: Case, options: argparse.Namespace, deadline: float, compiles: bool
) -> dict[str, Any]:
    device = options.device
    release(device)
    try:
        with matmul_precision(MODES[case.mode].precision):
            drawn = Drawn.draw(case, device)
            square = gpu_rates.square_product(MODES[case.mode].dtype, device, options.square)
            runs: dict[str, Run] = {
                "square/both": square,
                "products/both": gpu_rates.problem_products(drawn),
            }
            left_out: dict[str, str] = {}
            for name, make in ways(case, drawn, options.fused).items():
                if name not in options.ways:
                    continue
                if name in DENSE_WAYS and _holds_too_much(case, device):
                    left_out[name] = "skipped: M×N is too large to try"
                elif name == "compiled" and not compiles:
                    left_out[name] = "skipped: no time to compile"
                else:
                    made = cache(make)
                    runs[f"{name}/forward"] = _forward(made)
                    runs[f"{name}/both"] = _both(made)
            found = measure(runs, options.repeats, device, deadline)
            for name in [name for name in found if "seconds" in found[name]]:
                if name.endswith("/both") and name.split("/")[0] in WAYS:
                    found[name]["extra_mb"] = extra_memory(runs[name], device)
            return _arrange(case, found, left_out, options.square)
    except DeviceLostError:
        raise
    except Exception as error:  # of this case: the others are still to be measured
        return {name: {"both": {"status": in_words(error)}} for name in options.ways}
    finally:
        if "compiled" in options.ways:
            torch._dynamo.reset()  # Each case is compiled for its own shape.


def _forward(made: Any) -> Run:
    return lambda: made().forward()


def _both(made: Any) -> Run:
    return lambda: made().both()


def _holds_too_much(case: Case, device: torch.device) -> bool:
    """Whether three float32 M×N matrices, which all dense ways hold at least, exceed the card."""
    if device.type != "cuda":
        return False
    total: int = torch.cuda.get_device_properties(device).total_memory
    return 3 * 4 * case.similarities > total


def _arrange(
    case: Case, found: dict[str, Any], left_out: dict[str, str], square: int = gpu_rates.SQUARE
) -> dict[str, Any]:
    """By way and part, with rates and ratios."""
    measured: dict[str, Any] = {}
    for name, one in found.items():
        way, part = name.split("/")
        measured.setdefault(way, {})[part] = one
    for way, words in left_out.items():
        measured[way] = {part: {"status": words} for part in ("forward", "both")}
    flops = {"square": 2 * square**3, "products": gpu_rates.products_flops(case)}
    rates: dict[str, float] = {}
    for way, parts in measured.items():
        seconds = parts["both"].get("seconds") if "both" in parts else None
        if seconds:
            rates[way] = flops.get(way, case.useful_flops) / seconds / 1e12
            parts["tflops"] = rates[way]
    for way, parts in measured.items():
        if way in rates:
            for reference in ("square", "products"):
                if reference in rates:
                    parts[f"of_{reference}"] = rates[way] / rates[reference]
            if "fused" in rates and way in WAYS:
                parts["to_fused"] = rates["fused"] / rates[way]
    return measured


def _begin(options: argparse.Namespace) -> Row:
    """The record so far, where one is to be gone on with, or a new one."""
    path = options.out / RECORD if options.out is not None else None
    if options.resume and path is not None and path.exists():
        record: Row = json.loads(path.read_text())
        record["rows"] = [row for row in record["rows"] if row["note"] != "no time left"]
        record["resumed"] = record.get("resumed", 0) + 1
        return record
    environment = {**describe_environment(options.commit), **describe_device(options.device)}
    bandwidth = gpu_rates.copy_bandwidth(options.device, options.copied)
    return {"environment": environment, "copy_gb_per_second": bandwidth, "rows": []}


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("mode", "anchors", "entries", "dim", "classes"))


def _write(folder: Path | None, record: Row) -> None:
    if folder is not None:
        write_record(folder / RECORD, record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hot_path --device cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cases", dest="shapes", nargs="+", type=parse_case_shape, metavar="MxNxD[xC]",
        help='N may be "itself" (default: 27 of them, those of the claims first)')  # fmt: skip
    add("--modes", nargs="+", choices=MODES, default=list(MODES), metavar="MODE")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    add("--repeats", type=int, default=7, metavar="N", help="samples of each way (default: 7)")
    add("--budget", type=float, default=480.0, metavar="SECONDS", help="begin nothing after it")
    add("--out", type=Path, metavar="FOLDER", help=f"for {RECORD}")
    add("--resume", action="store_true", help="go on with the record in the folder")
    add("--commit", help="for the record, where there is no git")
    # A rehearsal without a GPU: small sizes, and another backend in the place of the fused one.
    add("--device", type=torch.device, default=torch.device("cuda"), help=argparse.SUPPRESS)
    add("--fused", default="triton", help=argparse.SUPPRESS)
    add("--square", type=int, default=gpu_rates.SQUARE, help=argparse.SUPPRESS)
    add("--copied", type=int, default=gpu_rates.COPIED, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
