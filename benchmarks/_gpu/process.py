"""Run one command with a hard time limit, and leave no process of it behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.05
TERMINATION_SECONDS = 1.0
"""How long a process has to end after SIGTERM, and again after SIGKILL."""


class Ended(NamedTuple):
    """How a command ended: its status is None at the time limit, and −n where signal n ended it."""

    exit_status: int | None
    seconds: float


def run_limited(
    command: Sequence[str],
    *,
    seconds: float,
    log: Path,
    environment: Mapping[str, str],
    watch: Callable[[], None] | None = None,
) -> Ended:
    """Run a command for at most `seconds`, and stop every process that it started.

    At the limit it receives SIGTERM and, one second later, SIGKILL. Processes that moved to another
    session are found by an environment variable that only descendants of it inherit (Linux). Its
    output is appended to `log`; `watch` is called about once a second while it runs.
    """
    marker = f"PIXCONTRAST_COMMAND_{uuid.uuid4().hex}"
    variables = {**os.environ, **environment, marker: "1"}
    start = watched = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env=variables, start_new_session=True)  # fmt: skip
    try:
        while process.poll() is None and time.monotonic() - start < seconds:
            time.sleep(POLL_SECONDS)
            if watch is not None and time.monotonic() - watched >= 1.0:
                watch()
                watched = time.monotonic()
        return Ended(process.poll(), time.monotonic() - start)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(timeout=TERMINATION_SECONDS)
        for _ in range(5):  # A process may start another one during a sweep.
            if not _kill_those_with(marker):
                break
            time.sleep(POLL_SECONDS)


def _kill_those_with(marker: str) -> int:
    """Kill the processes that have this environment variable, and return how many there were."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if marker.encode() in path.read_bytes():
                found += 1
                os.kill(int(path.parent.name), signal.SIGKILL)
    return found
