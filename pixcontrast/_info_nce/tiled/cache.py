"""How much cache the processor has, which is what a tile on the CPU has to fit into."""

from __future__ import annotations

import functools
from pathlib import Path

_SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20}
ASSUMED = 16 << 20
"""Bytes of last-level cache where the system does not tell: a laptop's."""


@functools.cache
def last_level_cache() -> int:
    """Bytes of the largest cache, as Linux tells it; `ASSUMED` elsewhere."""
    return largest_size(_SYSTEM)


def largest_size(folder: Path) -> int:
    """The largest `index*/size` (such as `36608K`) of a folder laid out as in /sys."""
    try:
        sizes = [path.read_text().strip() for path in folder.glob("index*/size")]
        return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=ASSUMED)
    except (OSError, ValueError, KeyError, IndexError):
        return ASSUMED
