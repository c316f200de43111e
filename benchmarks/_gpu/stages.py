"""What a run on a GPU consists of: the stages, in order, and by when each is over."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One command that measures or checks something and writes a record while it runs.

    Attributes:
        name: how the stage is called in the summary.
        end: the share of the time of all stages that is over when the stage must end. Time that
            earlier stages did not use is available to it.
        command: program and arguments, with `{folder}`, `{budget}` and `{processes}` filled in.
        record: the file that it writes into `{folder}`.
        folder: name of that folder. Stages that continue the same record share one.
        published: whether the record becomes a result file; else it is a part of the summary.
        judges: whether the record has `"correct"` and `"failed"`, for the verdict over the run.
        resume: added to the command where the stage starts again after a crash.
        restarts: how often it may start again.
        required: whether the run is incomplete without it.
    """

    name: str
    end: float
    command: tuple[str, ...]
    record: str
    folder: str
    published: bool = True
    judges: bool = False
    resume: tuple[str, ...] = ()
    restarts: int = 0
    required: bool = True

    def arguments(self, values: Mapping[str, object], is_restart: bool) -> list[str]:
        """The command line; a restart continues the record that exists."""
        words = (*self.command, *(self.resume if is_restart else ()))
        return [word.format_map(values) for word in words]


def choose_stages(names: Sequence[str] | None, rehearse: bool) -> tuple[Stage, ...]:
    """The stages with these names (None: all), in order; their small variants in a rehearsal."""
    chosen = [stage for stage in STAGES if names is None or stage.name in names]
    if not rehearse:
        return tuple(chosen)
    small = ("--rehearse",)
    return tuple(
        stage if stage.name == PICTURE else replace(stage, command=stage.command + small)
        for stage in chosen
    )


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


_WRITES = ("--out", "{folder}", "--budget", "{budget}")
_HOT_PATH = "hot_path_gpu.json"
_TIMES_LOSS = _python("benchmarks.hot_path", "--device", "cuda", *_WRITES, "--record", _HOT_PATH)
_TIMES_STEPS = _python("benchmarks.step", "--device", "cuda", *_WRITES, "--record")
PICTURE = "picture"
SECONDS = 540.0
"""The budget that the ends below are made for."""

STAGES = (
    Stage(
        name="precompile",
        end=60 / SECONDS,
        command=_python("benchmarks._gpu.precompile", *_WRITES, "--processes", "{processes}"),
        record="precompile.json",
        folder="precompile",
        published=False,
        required=False,
    ),
    Stage(
        name="smoke",
        end=95 / SECONDS,
        command=_python("benchmarks._gpu.smoke", *_WRITES),
        record="smoke.json",
        folder="smoke",
        published=False,
        judges=True,
    ),
    Stage(
        name="headlines",
        end=220 / SECONDS,
        command=(*_TIMES_LOSS, "--stage", "headlines"),
        record=_HOT_PATH,
        folder="hot_path",
        resume=("--resume",),
        restarts=3,
    ),
    Stage(
        name="steps",
        end=285 / SECONDS,
        command=(*_TIMES_STEPS, "step_gpu.json"),
        record="step_gpu.json",
        folder="steps",
    ),
    # Profilers may disturb what they look at, so nothing is timed in these processes.
    Stage(
        name="launches",
        end=320 / SECONDS,
        command=(*_TIMES_STEPS, "launches_gpu.json", "--profile"),
        record="launches_gpu.json",
        folder="launches",
    ),
    Stage(
        name="tests",
        end=490 / SECONDS,
        command=_python(
            "benchmarks._gpu.run_tests",
            *("--out", "{folder}/tests_gpu.json", "--budget", "{budget}"),
            *("--processes", "{processes}"),
        ),
        record="tests_gpu.json",
        folder="tests",
        judges=True,
    ),
    Stage(
        # All cases, so that headlines for which no time was left come first.
        name="rest",
        end=520 / SECONDS,
        command=(*_TIMES_LOSS, "--resume"),
        record=_HOT_PATH,
        folder="hot_path",
        restarts=3,
    ),
    Stage(
        name=PICTURE,
        end=532 / SECONDS,
        command=_python("benchmarks.hot_path", "--redraw", f"{{folder}}/{_HOT_PATH}"),
        record="hot_path_gpu.png",
        folder="hot_path",
        required=False,
    ),
)
