"""Run stages one after another: each has a time limit, and none can take another's results."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._gpu.process import run_limited
from benchmarks._measure.command import write_record, write_whole

Record = dict[str, Any]
DONE, FAILED, TIMED_OUT, NO_TIME = "done", "failed", "timed out", "no time left"
RESTARTS = 3
LEAST_SECONDS = 1.0
"""A stage with less time than that is not started."""
FINISHING_SHARE, MOST_FINISHING_SECONDS = 0.2, 3.0
"""Of a stage's time, what it has after its own budget to end in order."""
TAIL, MOST_LOGGED = 2000, 100_000
"""Characters of the output of a stage, in the summary where it is not done, and in the log."""


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
    """

    name: str
    end: float
    command: tuple[str, ...]
    record: str
    published: bool = True
    judges: bool = False
    resumes: bool = False

    def arguments(self, folder: Path, budget: float, rehearse: bool, is_restart: bool) -> list[str]:
        """Return the command line; a restart continues the record that exists."""
        given = [*self.command, "--out", str(folder), "--budget", f"{budget:.1f}"]
        given += ["--rehearse"] * rehearse + ["--resume"] * is_restart
        return [sys.executable, "-m", *given]


class Runner:
    """One run of several stages, with its results in the folder `out`, all else in `work`.

    The budget starts when `time.monotonic()` was `began`; all stages share what is left `before`
    the first. `outcomes` has of each stage its `status`, the `exit_status` of its last process
    (None where it was stopped or not started), when it `began`, its `seconds` and their `limit`,
    `restarts`, and `log_tail`, the end of what it printed, unless it is done.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        out: Path,
        work: Path,
        budget: float,
        *,
        began: float,
        environment: Mapping[str, Any],
        variables: Mapping[str, str],
        rehearse: bool = False,
    ) -> None:
        self.stages = stages
        self.out = out
        self.work = work
        self.budget = budget
        self.began = began
        self.environment = environment
        self.variables = variables
        self.rehearse = rehearse
        self.outcomes: dict[str, Record] = {}
        self.before = 0.0

    def run(self) -> None:
        """Run every stage for which time is left; returns whatever happens in them."""
        self.before = self._elapsed()
        for stage in self.stages:
            began = self._elapsed()
            limit = max(0.0, self.before + stage.end * (self.budget - self.before) - began)
            outcome = {"status": NO_TIME, "exit_status": None, "began": began, "limit": limit}
            try:
                self._run_stage(stage, outcome, began + limit)
            except Exception as error:  # The other stages must still run.
                outcome |= {"status": FAILED, "log_tail": repr(error)}
            outcome["seconds"] = self._elapsed() - began
            if outcome["status"] != DONE:
                outcome.setdefault("log_tail", self._log(stage, TAIL))
            self.outcomes[stage.name] = outcome
            self.publish()
            print(
                f"[{self._elapsed():5.0f} s] {stage.name}: {outcome['status']} "
                f"after {outcome['seconds']:.1f} of {limit:.0f} s",
                flush=True,
            )

    def record_of(self, stage: Stage) -> Record | None:
        """Return what the stage has written so far; None where that is no whole record."""
        try:
            # JSON has no NaN, but Python reads and writes it.
            text = self._path(stage).read_text()
            record = json.loads(text, parse_constant=lambda name: None)
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def verdict(self) -> tuple[bool | None, list[str]]:
        """Return whether the results are right, and the cases that are wrong, after their stage.

        Every record may say that something is wrong. That nothing is, only the records of the
        stages that judge say, once these are done; None where one of them is missing.
        """
        failed: list[str] = []
        answers: list[bool | None] = []
        for stage in {one.record: one for one in reversed(self.stages)}.values():
            record = self.record_of(stage) or {}
            wrong = record.get("failed") or ["correct is false"] * (record.get("correct") is False)
            failed = [f"{stage.name}: {case}" for case in wrong] + failed
            if stage.judges:
                answers.append(record.get("correct") if self.status(stage) == DONE else None)
        return False if failed else True if answers and all(answers) else None, failed

    def complete(self) -> bool:
        """Return whether every stage is done."""
        return all(self.status(stage) == DONE for stage in self.stages)

    def status(self, stage: Stage) -> str:
        """Return one of the four words, or "not done" so far."""
        return str(self.outcomes.get(stage.name, {}).get("status", "not done"))

    def publish(self) -> None:
        """Write every result file anew, from what the stages have written so far."""
        correct, failed = self.verdict()
        stages = {one.name: dict(self.outcomes.get(one.name, {"status": "not done"}))
                  for one in self.stages}  # fmt: skip
        summary = {
            "correct": correct,
            "failed": failed,
            "complete": self.complete(),
            "seconds": self._elapsed(),
            "seconds_before_stages": self.before,
            "budget": self.budget,
            "environment": self.environment,
            "stages": stages,
        }
        with contextlib.suppress(OSError):  # A full disk must not end the stages to come.
            for stage in self.stages:
                if stage.published:
                    self._publish_record(stage, {"correct": correct, "failed": failed})
                else:
                    stages[stage.name]["record"] = self.record_of(stage)
            write_record(self.out / "summary.json", summary)
            logs = [f"==== {one.name}\n{self._log(one, MOST_LOGGED)}\n" for one in self.stages]
            write_whole(self.out / "gpu.log", "".join(logs).encode())

    def _run_stage(self, stage: Stage, outcome: Record, end: float) -> None:
        folder = self._path(stage).parent
        folder.mkdir(parents=True, exist_ok=True)
        for restarts in range(1 + RESTARTS * stage.resumes):
            left = end - self._elapsed()
            if left < LEAST_SECONDS:
                return
            own = left - min(MOST_FINISHING_SECONDS, FINISHING_SHARE * left)
            status = run_limited(
                stage.arguments(folder, own, self.rehearse, restarts > 0),
                seconds=left,
                log=self.work / f"{stage.name}.log",
                environment=self.variables,
                watch=self.publish,
            ).exit_status
            # A command that checks may say by its exit status too that something is wrong.
            record = (self.record_of(stage) if stage.judges else None) or {}
            is_done = status == 0 or (status == 1 and record.get("correct") is False)
            word = TIMED_OUT if status is None else DONE if is_done else FAILED
            outcome |= {"status": word, "exit_status": status, "restarts": restarts}
            if word != FAILED:
                return

    def _publish_record(self, stage: Stage, run: Record) -> None:
        record = self.record_of(stage)
        if record is None:
            return  # It is being written at this moment; what is published stays.
        own = record.get("environment") or {}
        known = {name: value for name, value in own.items() if value is not None}
        sharing = [other for other in self.stages if other.record == stage.record]
        stamped = {
            "correct": run["correct"],  # unless the record says so of its own figures
            **record,
            "environment": {**self.environment, **known},
            "run": {**run, "stages": {other.name: self.status(other) for other in sharing}},
        }
        write_record(self.out / stage.record, stamped)

    def _path(self, stage: Stage) -> Path:
        return self.work / Path(stage.record).stem / stage.record

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _log(self, stage: Stage, characters: int) -> str:
        path = self.work / f"{stage.name}.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""
