"""Limits on the memory and the time of calls, so that a bad one is refused or interrupted."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOM = 2 << 30
"""Bytes beyond the current size of the process; no suitable call needs more."""


class HangError(Exception):
    """A call took too long."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the address space, so that PyTorch's allocator refuses huge sizes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `HangError` in Python code that takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
