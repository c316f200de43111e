"""Run stages one after another: each has a time limit, and none can take another's results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._measure.command import write_record

DONE, FAILED, TIMED_OUT, NO_TIME = "done", "failed", "timed out", "no time left"
LEAST_SECONDS = 1.0
"""A stage with less time than that is not started."""
FINISHING_SHARE, MOST_FINISHING_SECONDS = 0.2, 3.0
"""Of a stage's time, what it has after its own budget to end in order."""
TERMINATION_SECONDS = 1.0
"""How long a process has to end after SIGTERM, and again after SIGKILL."""
TAIL = 2000
"""Characters of the output of a stage that are printed."""
MOST_LINES = 20


class Stage(NamedTuple):
    """One command that measures or checks something and writes a record while it runs.

    Attributes:
        end: the share of the time of all stages that is over when the stage must end. Time that
            earlier stages did not use is available to it.
        command: module and options; the options of every stage are added.
        record: the file that it writes.
        judges: whether the record has `"correct"` and `"failed"`, for the verdict over the run.
    """

    name: str
    end: float
    command: tuple[str, ...]
    record: str
    judges: bool = False

    def arguments(self, folder: Path, budget: float, rehearse: bool) -> list[str]:
        """Return the command line."""
        given = [*self.command, "--out", str(folder), "--budget", f"{budget:.1f}"]
        return [sys.executable, "-m", *given, *(["--rehearse"] * rehearse)]


class Stages:
    """A run of several stages, with their results in the folder `out`.

    The budget starts when `time.monotonic()` was `began`; all stages share what is left before the
    first. `outcomes` has of each stage its `status`, the `exit_status` of its process (None where
    it was stopped or not started), its `seconds` and their `limit`.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        out: Path,
        budget: float,
        *,
        began: float,
        environment: Mapping[str, Any],
        variables: Mapping[str, str],
        rehearse: bool = False,
    ) -> None:
        self.stages = stages
        self.out = out
        self.budget = budget
        self.began = began
        self.environment = environment
        self.variables = variables
        self.rehearse = rehearse
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.before = 0.0

    def run(self) -> None:
        """Run every stage for which time is left, whatever happens in the others."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("gpu.log", *(stage.record for stage in self.stages)):
            (self.out / name).unlink(missing_ok=True)
        self.before = self._elapsed()
        for stage in self.stages:
            self._run_stage(stage)
            self.publish()

    def record_of(self, stage: Stage) -> dict[str, Any]:
        """Return what the stage has written so far; nothing where that is no whole record."""
        try:
            record = json.loads((self.out / stage.record).read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def verdict(self) -> tuple[bool | None, list[str]]:
        """Return whether the results are right, and the cases that are wrong, after their stage.

        Every record may say that something is wrong. That nothing is, only the last stage that
        judges says, which has the cases of those before it; None where it is not done.
        """
        failed: list[str] = []
        answer: bool | None = None
        for stage in self.stages:
            record = self.record_of(stage)
            wrong = record.get("failed") or ["correct is false"] * (record.get("correct") is False)
            failed += [f"{stage.name}: {case}" for case in wrong]
            if stage.judges:
                answer = record.get("correct") if self.status(stage) == DONE else None
        return False if failed else answer, failed

    def complete(self) -> bool:
        """Return whether every stage is done."""
        return all(self.status(stage) == DONE for stage in self.stages)

    def status(self, stage: Stage) -> str:
        """Return one of the four words, or "not done" so far."""
        return str(self.outcomes.get(stage.name, {}).get("status", "not done"))

    def publish(self) -> None:
        """Write the summary."""
        correct, failed = self.verdict()
        summary = {
            "correct": correct,
            "failed": failed,
            "complete": self.complete(),
            "seconds": self._elapsed(),
            "seconds_before_stages": self.before,
            "budget": self.budget,
            "environment": self.environment,
            "stages": self.outcomes,
        }
        with contextlib.suppress(OSError):  # A full disk must not end the stages to come.
            write_record(self.out / "summary.json", summary)

    def report(self) -> str:
        """Return the verdict, and where the time went."""
        correct, failed = self.verdict()
        words = {True: "yes", False: "NO", None: "not known, a check did not finish"}[correct]
        lines = [f"correct: {words}", *(f"  wrong: {name}"[:120] for name in failed[:MOST_LINES])]
        if len(failed) > MOST_LINES:
            lines.append(f"  and {len(failed) - MOST_LINES} more, see the records")
        lines.append(f"{'stage':<12}{'status':<14}{'seconds':>8}{'limit':>7}")
        lines.append(f"{'(start)':<26}{self.before:>8.1f}")
        for name, one in self.outcomes.items():
            lines.append(f"{name:<12}{one['status']:<14}{one['seconds']:>8.1f}{one['limit']:>7.0f}")
        return "\n".join(lines)

    def _run_stage(self, stage: Stage) -> None:
        began = self._elapsed()
        limit = max(0.0, self.before + stage.end * (self.budget - self.before) - began)
        status, exit_status, printed = NO_TIME, None, ""
        if limit >= LEAST_SECONDS:
            own = limit - min(MOST_FINISHING_SECONDS, FINISHING_SHARE * limit)
            command = stage.arguments(self.out, own, self.rehearse)
            exit_status, printed = run_limited(command, limit, self.out / "gpu.log", self.variables)
            # A command that checks may say by its exit status too that something is wrong.
            judged_wrong = stage.judges and self.record_of(stage).get("correct") is False
            is_done = exit_status == 0 or (exit_status == 1 and judged_wrong)
            status = TIMED_OUT if exit_status is None else DONE if is_done else FAILED
        seconds = self._elapsed() - began
        self.outcomes[stage.name] = {
            "status": status,
            "exit_status": exit_status,
            "seconds": seconds,
            "limit": limit,
        }
        print(f"{printed[-TAIL:]}\n== {stage.name}: {status} after {seconds:.0f} s", flush=True)

    def _elapsed(self) -> float:
        return time.monotonic() - self.began


def run_limited(
    command: Sequence[str], seconds: float, log: Path, variables: Mapping[str, str]
) -> tuple[int | None, str]:
    """Run a command for at most `seconds`, its output appended to a file.

    At the limit all processes of its session receive SIGTERM and, one second later, SIGKILL.

    Returns:
        The exit status, None at the limit, and the output.
    """
    with log.open("ab+") as out:
        start = out.seek(0, os.SEEK_END)
        environment = {**os.environ, **variables}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env=environment, start_new_session=True)  # fmt: skip
        status = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(timeout=seconds)
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(timeout=TERMINATION_SECONDS)
        out.seek(start)
        return status, out.read().decode(errors="replace")
