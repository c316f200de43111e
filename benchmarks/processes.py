"""Processes side by side, each with a log and all with one deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Command:
    """What is run, and what its environment has beside our own."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (None: it was stopped), and after how many seconds."""

    status: int | None
    seconds: float


def run_together(commands: Mapping[str, Command], folder: Path, seconds: float) -> dict[str, Ended]:
    """Run all at once, each printing to `folder/NAME.log`; stop what is not done in time."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    processes: dict[str, subprocess.Popen[bytes]] = {}
    ended: dict[str, Ended] = {}
    try:
        for name, command in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command.arguments,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **command.environment},
                    start_new_session=True,
                )
        while len(ended) < len(processes):
            late = time.monotonic() - start > seconds
            for name, process in processes.items():
                if name not in ended and (process.poll() is not None or late):
                    ended[name] = Ended(process.poll(), time.monotonic() - start)
            time.sleep(0.05)
    finally:
        for process in processes.values():
            if process.poll() is None:
                _stop(process)
    return ended


def _stop(process: subprocess.Popen[bytes]) -> None:
    """With what it started: a process of its own session is a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
