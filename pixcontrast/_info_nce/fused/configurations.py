"""How each kernel is cut into tiles: fixed per card, dtype and D, so that no run has to search.

Shared memory decides: 227 KB a program on Hopper and data-centre Blackwell, 163 KB on A100,
99 KB on consumer cards. Every row is compiled ahead of time by `test_ahead_of_time.py`, which
checks that it fits and that 16-bit and TF32 products spill no register. That is so with Triton 3.9
and 3.8. With 3.6 the second pass in TF32 at D = 512 on Hopper and Blackwell spills 16 bytes, and
mining's selection in TF32 at D = 256 on Blackwell 8.
`python -m benchmarks.tune` searches for better rows on a card and prints them as they stand here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Configuration(NamedTuple):
    """A kernel's tile: `rows` of what a program keeps, `columns` of what it streams."""

    rows: int
    columns: int
    warps: int
    stages: int


class Configurations(NamedTuple):
    """The tiles of the three passes. The columns of the second divide those of the first.

    Attributes:
        denominator: rows are anchors, columns entries.
        positives: the same.
        entries: rows are entries, columns anchors.
        mined: of every pass under mining; rows are anchors, columns entries.
    """

    denominator: Configuration
    positives: Configuration
    entries: Configuration
    mined: Configuration


Row = dict[int, Configurations]
C, K = Configurations, Configuration

# By the kind of product and the largest D. float32 as it is has no matrix unit on any card: small
# tiles, which no card lacks the memory for.
_IEEE: Row = {
    64: C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
    128: C(K(32, 16, 8, 2), K(64, 16, 8, 2), K(64, 32, 8, 2), K(32, 16, 8, 2)),
    256: C(K(32, 32, 8, 1), K(64, 16, 8, 2), K(64, 16, 8, 2), K(32, 32, 8, 1)),
    512: C(K(32, 16, 8, 2), K(32, 16, 8, 1), K(32, 16, 8, 1), K(32, 16, 8, 2)),
}
_AMPERE: dict[str, Row] = {
    "16": {
        64: C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 3), K(64, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2)),
        256: C(K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 32, 4, 2)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 3), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 1), K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
        256: C(K(64, 32, 8, 2), K(64, 32, 8, 1), K(64, 32, 8, 2), K(32, 32, 4, 2)),
        512: C(K(32, 16, 8, 2), K(32, 16, 8, 2), K(32, 16, 8, 1), K(16, 16, 4, 1)),
    },
    "ieee": _IEEE,
}
_HOPPER: dict[str, Row] = {
    "16": {
        64: C(K(128, 64, 8, 3), K(64, 64, 8, 2), K(64, 64, 4, 3), K(128, 64, 8, 2)),
        128: C(K(128, 64, 8, 3), K(64, 32, 8, 2), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(128, 64, 8, 2), K(64, 32, 8, 2), K(64, 32, 8, 2), K(128, 32, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 2), K(64, 32, 8, 3), K(64, 32, 4, 2), K(128, 64, 8, 2)),
        128: C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 32, 8, 2), K(128, 32, 8, 2)),
        256: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 32, 8, 1), K(32, 32, 8, 2)),
    },
    "ieee": _IEEE,
}
_BLACKWELL: dict[str, Row] = {
    "16": {
        64: C(K(128, 64, 8, 3), K(64, 64, 8, 3), K(64, 64, 4, 3), K(128, 32, 8, 2)),
        128: C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(128, 32, 8, 1), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(64, 32, 8, 2), K(32, 64, 8, 1)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
        256: C(K(64, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 8, 2), K(32, 64, 8, 1)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 32, 8, 1), K(32, 32, 8, 2)),
    },
    "ieee": _IEEE,
}
_CONSUMER: dict[str, Row] = {
    "16": {
        64: C(K(128, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 4, 2), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2), K(32, 32, 8, 1)),
        256: C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 16, 4, 1)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 2), K(32, 32, 8, 1)),
        128: C(K(64, 64, 8, 1), K(64, 64, 8, 1), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        256: C(K(32, 32, 8, 2), K(32, 16, 8, 2), K(16, 16, 8, 1), K(16, 32, 4, 1)),
        512: C(K(16, 16, 8, 1), K(16, 16, 8, 1), K(16, 16, 8, 1), K(16, 16, 4, 2)),
    },
    "ieee": _IEEE,
}

_LATEST_CONSUMER: dict[str, Row] = {
    **_CONSUMER,
    "16": {**_CONSUMER["16"], 256: _CONSUMER["16"][256]._replace(mined=K(16, 32, 8, 2))},
    "tf32": {
        **_CONSUMER["tf32"],
        256: _CONSUMER["tf32"][256]._replace(denominator=K(32, 32, 4, 2)),
    },
}

# Compute capability, as ten times major and minor.
TABLE: dict[int, dict[str, Row]] = {
    80: _AMPERE,
    86: _CONSUMER,
    89: _CONSUMER,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _LATEST_CONSUMER,
}
LARGEST_DIM = 512

# The interpreter's: small, so that little problems have many tiles.
INTERPRETED = C(K(32, 32, 1, 1), K(16, 16, 1, 1), K(16, 32, 1, 1), K(32, 64, 1, 1))


_tried: list[Configurations] = []


@contextmanager
def using(configurations: Configurations) -> Iterator[None]:
    """Inside, every call has these tiles: for a search such as `python -m benchmarks.tune`."""
    _tried.append(configurations)
    try:
        yield
    finally:
        _tried.pop()


def configurations_for(capability: int, kind: str, dim: int) -> Configurations:
    """The row of a card: its own, or that of the nearest older card of its generation."""
    if _tried:
        return _tried[-1]
    known = [card for card in TABLE if card <= capability and card // 10 == capability // 10]
    rows = TABLE[max(known)][kind] if known else _CONSUMER[kind]
    return rows[min(largest for largest in rows if dim <= largest)]


def for_mining(configurations: Configurations) -> Configurations:
    """One shape of product in every pass: only the same bits meet a threshold."""
    shape = configurations.mined
    # What is streamed is large then, and there is room for one of it.
    swapped = Configuration(shape.columns, shape.rows, shape.warps, 1)
    return Configurations(shape, shape, swapped, shape)
