"""Run stages one after another: each has a time limit, and none can take another's results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._gpu.process import run_limited
from benchmarks._gpu.records import (
    Record,
    Verdict,
    judge,
    read_record,
    write_record,
    write_whole,
)
from benchmarks._gpu.stages import Stage

DONE, FAILED, TIMED_OUT, NO_TIME = "done", "failed", "timed out", "no time left"
SUMMARY, LOG = "summary.json", "gpu.log"
LEAST_SECONDS = 1.0
"""A stage with less time than that is not started."""
FINISHING_SHARE, MOST_FINISHING_SECONDS = 0.2, 3.0
"""Of a stage's time, what it has after its own budget to end in order."""
TAIL = 2000
MOST_LOGGED = 100_000
"""Characters of the output of a stage, in the summary where it is not done, and in the log."""


@dataclass
class Outcome:
    """What became of a stage.

    Attributes:
        status: one of the four words above.
        exit_status: of its last process; None where it was stopped or not started.
        began, seconds: since the run began, and how long.
        limit: seconds that it could have taken.
        restarts: how often it was started again.
        kernels: how many kernels it added to the Triton cache.
        log_tail: the end of what it printed, unless it is done.
    """

    status: str
    exit_status: int | None = None
    began: float = 0.0
    seconds: float = 0.0
    limit: float = 0.0
    restarts: int = 0
    kernels: int = 0
    log_tail: str = ""


class Runner:
    """One run of several stages.

    Args:
        stages: in the order in which they run.
        out: folder for the results: the summary, one log, and the published records.
        work: folder for everything else.
        budget: seconds for all stages together.
        began: `time.monotonic()` at which the budget starts.
        environment: what is recorded about the machine.
        variables: environment variables of every stage.
        processes: how many processes a stage may use side by side.
        say: receives a line when a stage ends.
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
        processes: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        self.stages = stages
        self.out = out
        self.work = work
        self.budget = budget
        self.began = began
        self.environment = environment
        self.variables = variables
        self.processes = processes
        self.say = say
        self.outcomes: dict[str, Outcome] = {}
        self.before = 0.0
        """Seconds before the first stage: all stages share what is left of the budget."""

    def run(self) -> None:
        """Run every stage for which time is left; returns whatever happens in them."""
        self.before = self._elapsed()
        (self.work / "logs").mkdir(parents=True, exist_ok=True)
        for stage in self.stages:
            try:
                self.outcomes[stage.name] = self._run_stage(stage)
            except Exception as error:  # The other stages must still run.
                self.outcomes[stage.name] = Outcome(FAILED, log_tail=repr(error))
            outcome = self.outcomes[stage.name]
            self.publish()
            self.say(
                f"[{self._elapsed():5.0f} s] {stage.name}: {outcome.status} "
                f"after {outcome.seconds:.1f} of {outcome.limit:.0f} s"
            )

    def record_of(self, stage: Stage) -> Record | None:
        """What the stage has written so far."""
        return read_record(self.work / stage.folder / stage.record)

    def verdict(self) -> Verdict:
        """Whether the results are right, by the stages that check them."""
        first = {stage.record: stage for stage in reversed(self.stages)}
        return judge(
            {stage.name: self.record_of(stage) for stage in self.stages if stage in first.values()},
            {stage.name: self._status(stage) == DONE for stage in self.stages if stage.judges},
        )

    def complete(self) -> bool:
        """Whether every required stage is done."""
        return all(self._status(stage) == DONE for stage in self.stages if stage.required)

    def publish(self) -> None:
        """Write every result file anew, from what the stages have written so far."""
        correct, failed = self.verdict()
        with contextlib.suppress(OSError):  # A full disk must not end the stages to come.
            for stage in {stage.record: stage for stage in self.stages}.values():
                self._publish_record(stage, correct, failed)
            write_record(self.out / SUMMARY, self._summary(correct, failed))
            write_whole(self.out / LOG, self._joined_logs().encode())

    def _run_stage(self, stage: Stage) -> Outcome:
        began, kernels = self._elapsed(), self._count_kernels()
        end = self.before + stage.end * (self.budget - self.before)
        limit = end - began
        outcome = Outcome(NO_TIME, began=began, limit=max(0.0, limit))
        (self.work / stage.folder).mkdir(parents=True, exist_ok=True)
        for restarts in range(stage.restarts + 1):
            left = end - self._elapsed()
            if left < LEAST_SECONDS:
                break
            values = {
                "folder": self.work / stage.folder,
                "budget": f"{left - min(MOST_FINISHING_SECONDS, FINISHING_SHARE * left):.1f}",
                "processes": self.processes,
            }
            ended = run_limited(
                stage.arguments(values, restarts > 0),
                seconds=left,
                output=self._log(stage, "out"),
                errors=self._log(stage, "err"),
                environment=self.variables,
                watch=self.publish,
            )
            outcome.restarts, outcome.exit_status = restarts, ended.exit_status
            outcome.status = self._judge_end(stage, ended.exit_status)
            if outcome.status != FAILED:
                break
        outcome.seconds = self._elapsed() - began
        outcome.kernels = self._count_kernels() - kernels
        if outcome.status != DONE:
            outcome.log_tail = self._joined_log(stage)[-TAIL:]
        return outcome

    def _judge_end(self, stage: Stage, exit_status: int | None) -> str:
        if exit_status is None:
            return TIMED_OUT
        record = self.record_of(stage) if stage.judges else None
        # A command that checks may say by its exit status too that something is wrong.
        found_wrong = record is not None and record.get("correct") is False and exit_status == 1
        return DONE if exit_status == 0 or found_wrong else FAILED

    def _publish_record(self, stage: Stage, correct: bool | None, failed: list[str]) -> None:
        source = self.work / stage.folder / stage.record
        if not stage.published or not source.exists():
            return
        if source.suffix != ".json":
            if self._status(stage) == DONE:
                write_whole(self.out / stage.record, source.read_bytes())
            return
        record = self.record_of(stage)
        if record is None:
            return  # It is being written at this moment; what is published stays.
        sharing = [other for other in self.stages if other.record == stage.record]
        stamped = {
            "correct": correct,  # unless the record says so of its own figures
            **record,
            "environment": {**self.environment, **_known(record.get("environment") or {})},
            "run": {
                "correct": correct,
                "failed": failed,
                "stages": {other.name: self._status(other) for other in sharing},
            },
        }
        write_record(self.out / stage.record, stamped)

    def _summary(self, correct: bool | None, failed: list[str]) -> Record:
        stages: Record = {}
        for stage in self.stages:
            outcome = self.outcomes.get(stage.name)
            stages[stage.name] = {"status": "not done"} if outcome is None else asdict(outcome)
            if not stage.published:
                stages[stage.name]["record"] = self.record_of(stage)
        return {
            "correct": correct,
            "failed": failed,
            "complete": self.complete(),
            "seconds": self._elapsed(),
            "seconds_before_stages": self.before,
            "budget": self.budget,
            "environment": self.environment,
            "stages": stages,
        }

    def _status(self, stage: Stage) -> str:
        outcome = self.outcomes.get(stage.name)
        return "not done" if outcome is None else outcome.status

    def _elapsed(self) -> float:
        return time.monotonic() - self.began

    def _count_kernels(self) -> int:
        cache = self.variables.get("TRITON_CACHE_DIR")
        return 0 if cache is None else sum(1 for _ in Path(cache).glob("*/*.cubin"))

    def _log(self, stage: Stage, kind: str) -> Path:
        return self.work / "logs" / f"{stage.name}.{kind}"

    def _joined_log(self, stage: Stage) -> str:
        return _read(self._log(stage, "out")) + _read(self._log(stage, "err"))

    def _joined_logs(self) -> str:
        return "".join(
            f"==== {stage.name}\n{self._joined_log(stage)[-MOST_LOGGED:]}\n"
            for stage in self.stages
        )


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
