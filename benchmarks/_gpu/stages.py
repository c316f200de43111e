"""What a run on a GPU consists of: the stages, in order, and by when each is over."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks._measure.arguments import command_parser

SECONDS = 540.0
"""The budget that the ends below are made for."""
RESTARTS, MOST_PROCESSES = 3, 14
HOT_PATH = "hot_path_gpu.json"


class Stage(NamedTuple):
    """One command that measures or checks something and writes a record while it runs.

    Attributes:
        end: the share of the time of all stages that is over when the stage must end. Time that
            earlier stages did not use is available to it.
        command: module and options; the options of every stage are added.
        record: the file that it writes. Stages that continue the same record share a folder.
        published: whether the record becomes a result file; else it is a part of the summary.
        judges: whether the record has `"correct"` and `"failed"`, for the verdict over the run.
        resumes: whether it starts again after a crash, with `--resume`.
        required: whether the run is incomplete without it.
    """

    name: str
    end: float
    command: tuple[str, ...]
    record: str
    published: bool = True
    judges: bool = False
    resumes: bool = False
    required: bool = True

    def arguments(self, folder: Path, budget: float, rehearse: bool, is_restart: bool) -> list[str]:
        """Return the command line; a restart continues the record that exists."""
        given = [word.replace("{folder}", str(folder)) for word in self.command]
        given += ["--out", str(folder), "--budget", f"{budget:.1f}"]
        given += ["--rehearse"] * rehearse + ["--resume"] * is_restart
        return [sys.executable, "-m", *given]


def choose_stages(names: Sequence[str] | None) -> tuple[Stage, ...]:
    """Return the stages with these names (None: all), in order."""
    return tuple(stage for stage in STAGES if names is None or stage.name in names)


def stage_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a stage that is not a command of its own."""
    parser = command_parser(f"_gpu.{name}", description)
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the record")
    add("--budget", type=float, default=170.0, metavar="SECONDS", help="for everything")
    add("--processes", type=int, default=processes, metavar="N", help="processes side by side")
    add("--rehearse", action="store_true", help="small, on the CPU")
    return parser


_TIMES_LOSS = ("benchmarks.hot_path", "--device", "cuda")
_TIMES_STEPS = ("benchmarks.step", "--device", "cuda")
STAGES = (
    Stage("smoke", 95 / SECONDS, ("benchmarks._gpu.run_tests", "--smoke"), "smoke.json",
          published=False, judges=True),
    Stage("headlines", 220 / SECONDS, (*_TIMES_LOSS, "--stage", "headlines"), HOT_PATH,
          resumes=True),
    Stage("steps", 285 / SECONDS, _TIMES_STEPS, "step_gpu.json"),
    # Profilers may disturb what they look at, so nothing is timed in these processes.
    Stage("launches", 320 / SECONDS, (*_TIMES_STEPS, "--profile"), "launches_gpu.json"),
    Stage("tests", 490 / SECONDS, ("benchmarks._gpu.run_tests",), "tests_gpu.json", judges=True),
    # All cases, so that headlines for which no time was left come first.
    Stage("rest", 520 / SECONDS, (*_TIMES_LOSS, "--resume"), HOT_PATH, resumes=True),
    Stage("picture", 532 / SECONDS, ("benchmarks.hot_path", "--redraw", f"{{folder}}/{HOT_PATH}"),
          "hot_path_gpu.png", required=False),
)  # fmt: skip
