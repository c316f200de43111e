"""Run one command with a hard time limit, and leave no process of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
TERMINATION_SECONDS = 1.0
"""How long a process has to end after SIGTERM, and again after SIGKILL."""
LARGEST_SWEEPS = 5


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        exit_status: None where it was stopped at its time limit; −n where signal n ended it.
        seconds: how long it ran.
    """

    exit_status: int | None
    seconds: float


def run_limited(
    command: Sequence[str],
    *,
    seconds: float,
    output: Path,
    errors: Path,
    environment: Mapping[str, str],
    watch: Callable[[], None] | None = None,
) -> Ended:
    """Run a command for at most `seconds`, and stop every process that it started.

    The command runs in a session of its own. At the limit it receives SIGTERM and, one second
    later, SIGKILL. Processes that moved to another session are found by an environment variable
    that only descendants of this command inherit (Linux).

    Args:
        command: program and arguments.
        seconds: time limit, without the up to two seconds that stopping takes.
        output, errors: files that standard output and standard error are appended to.
        environment: variables added to those of this process.
        watch: called about once a second while the command runs.
    """
    marker = f"PIXCONTRAST_COMMAND_{uuid.uuid4().hex}"
    start = time.monotonic()
    with output.open("ab") as out, errors.open("ab") as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **environment, marker: "1"},
            start_new_session=True,
        )
    try:
        watched = start
        while process.poll() is None and time.monotonic() - start < seconds:
            time.sleep(POLL_SECONDS)
            if watch is not None and time.monotonic() - watched >= 1.0:
                watch()
                watched = time.monotonic()
        return Ended(process.poll(), time.monotonic() - start)
    finally:
        _stop(process, marker)


def _stop(process: subprocess.Popen[bytes], marker: str) -> None:
    """End the command and everything it started; never wait longer than two seconds."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        _wait(process)
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGKILL)
    for _ in range(LARGEST_SWEEPS):  # A process may start another one during a sweep.
        marked = _processes_with(marker)
        for pid in marked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not marked:
            break
        time.sleep(POLL_SECONDS)
    _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=TERMINATION_SECONDS)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """A process that leads a session leads a process group of the same id."""
    with contextlib.suppress(OSError):
        os.killpg(pid, number)


def _processes_with(marker: str) -> list[int]:
    """The ids of processes that have this environment variable; none where /proc is missing."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
