"""Everything a GPU is needed for: is it right on this card, and how fast is it there.

    python -m benchmarks.gpu --out FOLDER

The tests come first, and compute-sanitizer where it is installed; speed is measured only where
they are green. It takes less than nine minutes, and leaves in the folder `summary.json`, the
figures of a whole step, `step_gpu.json`, and of the loss alone, `hot_path_gpu.json`, with a
picture of the latter, and the logs. Each is written as its part ends. The exit status is 0, 1 where
something is wrong, 2 without a CUDA device, 3 where only the measurement broke off. It needs
PyTorch, Triton, pytest, hypothesis and, for the picture, matplotlib.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_checks
from benchmarks._measure.command import DEVICE_LOST, NO_DEVICE, REFUSED, write_record
from benchmarks._measure.environment import describe_device, describe_environment
from benchmarks._measure.tables import hot_path_head, hot_path_lines
from benchmarks._ways.cases import HEADLINES
from benchmarks.gpu_checks import Verdict
from benchmarks.processes import TIMED_OUT, Command, Ended, run_together

RECORD = "hot_path_gpu.json"
RED, BROKEN = 1, 3
ON_CUDA = ("--device", "cuda")
STEPS_IN_REHEARSAL = ("--rehearse", "--shapes", "small", "--repeats", "2")
MOST_PROCESSES = 10
"""Each has a context of half a gigabyte on the card, and its largest tests need memory."""
SHARE_OF_CHECKS = 0.5
"""Of the time; what the checks leave is the measurement's."""
FINISHING_SECONDS = 25.0
"""From the end of the budget of the measurement, which then finishes its case, to that of all."""
MOST_RESTARTS = 3
SECONDS_OF_STEPS = 75.0
"""For the whole steps; the loss alone has what is left."""


def main(arguments: list[str] | None = None) -> int:
    """Check, measure where it is right, and say in a few lines what came of it."""
    options = _parser().parse_args(arguments)
    if not (options.rehearse or torch.cuda.is_available()):
        print(NO_DEVICE)
        return REFUSED
    start = time.monotonic()
    end = start + 60 * options.minutes
    device = torch.device("cpu" if options.rehearse else "cuda")
    summary: dict[str, Any] = {
        "environment": {**describe_environment(options.commit), **describe_device(device)},
        "correctness": None,
        "steps": None,
        "speed": None,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options, summary)

    for_tests = {"PIXCONTRAST_GPU_TESTS_ON_CPU": "tiled"} if options.rehearse else {}
    seconds = SHARE_OF_CHECKS * 60 * options.minutes
    verdict = gpu_checks.check(options.out, seconds, options.processes, for_tests)
    summary["correctness"] = {"green": verdict.green, **verdict.details}
    _write(options, summary)
    print("\n".join(_correctness_lines(verdict)), flush=True)

    if not (verdict.green or options.anyway):
        summary["speed"] = "not measured: the results are not right"
        _write(options, summary)
        print(summary["speed"])
        return RED
    summary["steps"] = _measure_steps(options, end)
    summary["speed"] = _measure(options, end)
    summary["picture"] = _draw(options.out)
    summary["seconds"] = time.monotonic() - start
    _write(options, summary)
    print("\n".join(_speed_lines(options.out, summary)), flush=True)
    if not verdict.green:
        return RED
    return 0 if summary["speed"] == "measured" else BROKEN


def _measure_steps(options: argparse.Namespace, end: float) -> str:
    """Run the whole steps in a process of their own, and say how that ended."""
    seconds = min(SECONDS_OF_STEPS, end - time.monotonic() - FINISHING_SECONDS)
    if seconds <= 0:
        return "no time left"
    given = ON_CUDA if options.rehearse is None else STEPS_IN_REHEARSAL
    name = "steps"
    ended = _run_script("benchmarks.step", name, seconds, given, options)
    gpu_checks.join_logs([options.out / "parts" / f"{name}.log"], options.out / "steps.log")
    return _in_words(ended, "measured")


def _measure(options: argparse.Namespace, end: float) -> str:
    """Run the measurement in a process of its own, and again where it lost the device."""
    logs: list[Path] = []
    (options.out / RECORD).unlink(missing_ok=True)
    words = "no time left"
    for number in range(MOST_RESTARTS + 1):
        left = end - time.monotonic() - FINISHING_SECONDS
        if left <= 0:
            break
        name = f"speed-{number}"
        given = ["--resume", *(options.rehearse or ON_CUDA)]
        ended = _run_script("benchmarks.hot_path", name, left, given, options)
        logs.append(options.out / "parts" / f"{name}.log")
        words = _in_words(
            ended, "measured" if number == 0 else f"measured, after {number} fresh starts"
        )
        if ended.status in (0, None):
            break
    gpu_checks.join_logs(logs, options.out / "speed.log")
    shutil.rmtree(options.out / "parts", ignore_errors=True)
    return words


def _run_script(
    module: str, name: str, seconds: float, given: Sequence[str], options: argparse.Namespace
) -> Ended:
    """A script of measurements with that budget, which has a little longer to end its last case."""
    arguments = ["--out", str(options.out), "--budget", f"{seconds:.0f}", *given]
    arguments += ["--commit", options.commit] if options.commit else []
    command = Command(
        (sys.executable, "-m", module, *arguments),
        {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONUNBUFFERED": "1"},
    )
    limit = seconds + 0.8 * FINISHING_SECONDS
    return run_together({name: command}, options.out / "parts", limit)[name]


def _in_words(ended: Ended, measured: str) -> str:
    if ended.status == DEVICE_LOST:
        return "the device was lost"
    if ended.status is None:
        return TIMED_OUT
    return measured if ended.status == 0 else f"exit status {ended.status}"


def _draw(folder: Path) -> str:
    """The picture, or in words why there is none."""
    try:
        from benchmarks._plots.hot_path import save_curves

        rows = json.loads((folder / RECORD).read_text())["rows"]
        save_curves((folder / RECORD).with_suffix(".png"), rows)
    except Exception as error:  # a picture is not worth the figures
        return f"not drawn: {type(error).__name__}: {error}"
    return "drawn"


def _correctness_lines(verdict: Verdict) -> list[str]:
    found = verdict.details
    lines = [f"correctness: {'green' if verdict.green else 'RED'}, {found['passed']} tests passed, "
             f"{found['failed']} failed, {sum(found['skipped'].values())} skipped"]  # fmt: skip
    lines += [f"  failed: {name}" for name in found["failures"][:20]]
    lines += [f"  skipped {count}: {reason}" for reason, count in found["skipped"].items()]
    odd = {name: words for name, words in found["shards"].items() if not words.startswith("ended")}
    lines += [f"  {name}: {words}" for name, words in {**odd, **found["sanitizer"]}.items()]
    return lines


def _speed_lines(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The cases that claims are made of; all the others are in the record."""
    lines = [f"steps: {summary['steps']}; speed: {summary['speed']}; picture: {summary['picture']}"]
    if (folder / "steps.log").exists():
        lines.append((folder / "steps.log").read_text().rstrip())
    if (folder / RECORD).exists():
        record = json.loads((folder / RECORD).read_text())
        rows = record["rows"]
        lines.append(f"copying: {record['copy_gb_per_second']} GB/s; {len(rows)} cases recorded")
        lines.append(hot_path_head())
        for row in rows[: len(HEADLINES)]:
            lines += hot_path_lines(row)
    return lines


def _write(options: argparse.Namespace, summary: Mapping[str, Any]) -> None:
    write_record(options.out / "summary.json", summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    add("--out", type=Path, required=True, metavar="FOLDER", help="for all that is written")
    add("--anyway", action="store_true", help="measure speed also where results are wrong")
    add("--minutes", type=float, default=8.5, help="for everything (default: 8.5)")
    add("--processes", type=int, default=processes, metavar="N", help="tests side by side")
    add("--commit", help="for the record, where there is no git")
    add("--rehearse", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
