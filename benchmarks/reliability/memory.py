"""A limit on memory, so that a size that nobody can have is refused by the allocator."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 2 << 30
"""Bytes beyond what the process has: nothing that is called here needs more."""


@contextmanager
def limited_memory() -> Iterator[None]:
    """A size that nobody can have is refused by the allocator, and not by the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
