"""The tiles of each kernel: fixed for each card, kind of product and D, so that no run searches.

The limit is shared memory: 227 KB a program on Hopper and data-centre Blackwell, 163 KB on A100,
99 KB on consumer cards. `tests/info_nce/test_ahead_of_time.py` compiles every row and checks that
it fits and that 16-bit and TF32 products do not spill registers; `tests/info_nce/test_spills.py`
does so for every variant that a loss launches on Hopper. `python -m benchmarks.tune` searches for
better rows on a card and prints them as they are written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Configuration(NamedTuple):
    """The tile of a kernel: a program keeps `rows` and streams `columns`."""

    rows: int
    columns: int
    warps: int
    stages: int


class Configurations(NamedTuple):
    """The tiles of the passes. The columns of the second pass divide those of the first.

    Attributes:
        denominator: rows are anchors, columns are entries.
        positives: the same.
        entries: rows are entries, columns are anchors.
        mined: of every pass under mining; rows are anchors, columns are entries.
    """

    denominator: Configuration
    positives: Configuration
    entries: Configuration
    mined: Configuration


Row = dict[int, Configurations]
C, K = Configurations, Configuration

# By the kind of product and the largest D. "mixed" is 16-bit products with entries in float32, such
# as a float32 bank under autocast. No card has a matrix unit for full float32 ("ieee").
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
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 32, 8, 2)),
    },
    "mixed": {
        64: C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 3), K(64, 64, 8, 1), K(64, 64, 8, 3), K(64, 64, 8, 1)),
        256: C(K(64, 64, 8, 1), K(64, 64, 8, 1), K(64, 64, 8, 2), K(64, 32, 8, 1)),
        512: C(K(32, 32, 8, 1), K(32, 32, 8, 1), K(32, 64, 8, 2), K(32, 32, 8, 1)),
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
        64: C(K(128, 128, 8, 3), K(64, 64, 8, 2), K(64, 64, 4, 3), K(128, 64, 8, 2)),
        128: C(K(128, 128, 8, 3), K(64, 32, 8, 2), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(128, 64, 8, 3), K(64, 32, 8, 2), K(64, 32, 8, 2), K(128, 32, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1)),
    },
    "mixed": {
        64: C(K(128, 128, 8, 3), K(64, 32, 8, 2), K(64, 64, 4, 3), K(128, 64, 8, 2)),
        128: C(K(128, 128, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(128, 32, 8, 3), K(64, 32, 8, 1), K(64, 32, 8, 2), K(64, 32, 8, 1)),
        512: C(K(32, 32, 8, 1), K(32, 32, 8, 1), K(32, 64, 8, 2), K(16, 16, 8, 1)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 2), K(64, 32, 8, 3), K(64, 32, 4, 2), K(128, 64, 8, 2)),
        128: C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 32, 8, 2), K(128, 32, 8, 2)),
        256: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1)),
        512: C(K(32, 32, 8, 2), K(16, 32, 8, 2), K(32, 32, 8, 1), K(32, 32, 8, 2)),
    },
    "ieee": _IEEE,
}
_BLACKWELL: dict[str, Row] = {
    "16": {
        64: C(K(128, 64, 8, 3), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        128: C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
        512: C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(64, 32, 8, 2), K(32, 64, 8, 1)),
    },
    "mixed": {
        64: C(K(128, 64, 8, 3), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        128: C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2)),
        256: C(K(64, 32, 8, 1), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
        512: C(K(32, 32, 8, 1), K(32, 32, 8, 1), K(64, 32, 8, 2), K(16, 64, 8, 1)),
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
    "mixed": {
        64: C(K(128, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 4, 2), K(64, 32, 8, 2)),
        128: C(K(64, 64, 8, 2), K(64, 64, 8, 1), K(64, 64, 8, 2), K(32, 32, 8, 1)),
        256: C(K(64, 64, 8, 1), K(32, 32, 8, 2), K(64, 64, 8, 2), K(32, 32, 4, 2)),
        512: C(K(32, 32, 8, 1), K(32, 32, 8, 1), K(32, 32, 8, 2), K(32, 16, 4, 1)),
    },
    "tf32": {
        64: C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 2), K(32, 32, 8, 1)),
        128: C(K(64, 64, 8, 1), K(64, 64, 8, 1), K(64, 64, 8, 2), K(64, 32, 8, 2)),
        256: C(K(32, 32, 8, 2), K(32, 16, 8, 2), K(16, 16, 8, 1), K(16, 32, 4, 1)),
        512: C(K(16, 16, 8, 1), K(16, 16, 8, 1), K(16, 16, 8, 1), K(16, 16, 4, 2)),
    },
    "ieee": _IEEE,
}


def _with_mined(rows: Row, tiles: dict[int, Configuration]) -> Row:
    return rows | {dim: rows[dim]._replace(mined=tile) for dim, tile in tiles.items()}


_LATEST_CONSUMER: dict[str, Row] = {
    "16": _with_mined(_CONSUMER["16"], {128: K(32, 32, 4, 1), 256: K(16, 32, 8, 2)}),
    "mixed": _with_mined(_CONSUMER["mixed"], {128: K(32, 32, 4, 1), 256: K(16, 32, 8, 2)}),
    "tf32": {
        **_with_mined(_CONSUMER["tf32"], {64: K(32, 32, 4, 1)}),
        256: _CONSUMER["tf32"][256]._replace(denominator=K(32, 32, 4, 2)),
    },
    "ieee": _IEEE,
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

# Of the interpreter: small, so that small problems have many tiles.
INTERPRETED = C(K(32, 32, 1, 1), K(16, 16, 1, 1), K(16, 32, 1, 1), K(32, 64, 1, 1))


_tried: list[Configurations] = []


@contextmanager
def using(configurations: Configurations) -> Iterator[None]:
    """Give every call in the context these tiles, for a search such as `benchmarks.tune`."""
    _tried.append(configurations)
    try:
        yield
    finally:
        _tried.pop()


def configurations_for(capability: int, kind: str, dim: int) -> Configurations:
    """Return the row of a card, or of the nearest older card of its generation."""
    if _tried:
        return _tried[-1]
    known = [card for card in TABLE if card <= capability and card // 10 == capability // 10]
    rows = TABLE[max(known)][kind] if known else _LATEST_CONSUMER[kind]
    return rows[min(largest for largest in rows if dim <= largest)]


def for_mining(configurations: Configurations) -> Configurations:
    """Give every pass one shape of product, so that all compute the same bits of a similarity."""
    shape = configurations.mined
    # The streamed tile is large in the swapped pass, and there is room for one of it.
    swapped = Configuration(shape.columns, shape.rows, shape.warps, 1)
    return Configurations(shape, shape, swapped, shape)
