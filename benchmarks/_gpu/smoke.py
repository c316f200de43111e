"""Are the kernels right on this card at all: checks of a few seconds, before anything is timed.

    python -m benchmarks._gpu.smoke --out FOLDER

Every kind of product beside float64, runs that give the same bits, and whole steps that wait for
nothing and that a CUDA graph can hold. `smoke.json` is written after each check.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._gpu.records import write_record
from benchmarks._gpu.smoke_products import Check, CheckError, Setting, product_checks
from benchmarks._gpu.smoke_steps import SkippedError, step_checks

RIGHT, NO_TIME, NOT_RUN = "right", "no time left", "not run: the device was lost"
RECORD = "smoke.json"


def main(arguments: list[str] | None = None) -> int:
    """Run every check for which time is left."""
    started = STARTED if arguments is None else time.perf_counter()
    options = _parser().parse_args(arguments)
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # Before the kernels are imported.
    deadline = started + options.budget
    setting = Setting.of(options.rehearse)
    results: dict[str, dict[str, Any]] = {}
    for name, check in all_checks(setting).items():
        results[name] = _run(check, setting.device, deadline, results)
        write_record(options.out / RECORD, make_record(results, finished=False))
        print(f"{name}: {results[name]['status']}", flush=True)
    write_record(options.out / RECORD, make_record(results, finished=True))
    return 0


def all_checks(setting: Setting) -> dict[str, Check]:
    """Every check by its name, in the order in which time is spent on them."""
    return {**product_checks(setting), **step_checks(setting)}


def make_record(results: dict[str, dict[str, Any]], finished: bool) -> dict[str, Any]:
    """The verdict: false once a check is wrong, true when all have run and none is."""
    statuses = {name: result["status"] for name, result in results.items()}
    unknown = [name for name, status in statuses.items() if status in (NO_TIME, NOT_RUN)]
    failed = [
        f"{name}: {status}"
        for name, status in statuses.items()
        if name not in unknown and status != RIGHT and not status.startswith("skipped")
    ]
    correct = False if failed else True if finished and not unknown else None
    return {"correct": correct, "failed": failed, "checks": results}


def _run(
    check: Check, device: torch.device, deadline: float, before: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    start = time.perf_counter()
    if any(result["status"] == NOT_RUN or "lost" in result for result in before.values()):
        return {"status": NOT_RUN}
    if start > deadline:
        return {"status": NO_TIME}
    result: dict[str, Any] = {}
    try:
        result["errors"] = check()
        result["status"] = RIGHT
    except SkippedError as reason:
        result["status"] = f"skipped: {reason}"
    except CheckError as error:
        result["status"] = f"wrong: {error}"
    except Exception as error:  # Of a kernel or the compiler; the other checks still say something.
        result["status"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        if not _answers(device):
            result["lost"] = True
    result["seconds"] = time.perf_counter() - start
    return result


def _answers(device: torch.device) -> bool:
    """Whether the device still runs anything: after an illegal access it does not."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks._gpu.smoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--rehearse", action="store_true", help="small, in Triton's interpreter")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
