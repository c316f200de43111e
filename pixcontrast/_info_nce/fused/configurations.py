"""The tiles of each kernel, fixed for each GPU, kind of product and D. There is no autotuning.

The limit is shared memory: 227 KB a program on Hopper and data-centre Blackwell, 163 KB on A100,
99 KB on consumer GPUs. `tests/info_nce/test_ahead_of_time.py` compiles every row and checks that
it fits and that 16-bit and TF32 products do not spill registers; `tests/info_nce/test_spills.py`
does so for every variant that a loss launches, on Hopper or on other GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Configuration(NamedTuple):
    """The tile of a kernel: a program keeps a block of rows and streams blocks of columns.

    `maxnreg` is the largest number of registers of a thread. Without it, the compiler may move a
    few of them to memory so that more programs run at a time.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    maxnreg: int | None = None


class Configurations(NamedTuple):
    """The tiles of the passes. The columns of the second pass divide those of the first.

    Attributes:
        denominator: rows are anchors, columns are entries.
        positives: the same.
        entries: rows are entries, columns are anchors.
        mined: used by every pass under mining; rows are anchors, columns are entries.
    """

    denominator: Configuration
    positives: Configuration
    entries: Configuration
    mined: Configuration


C, K = Configurations, Configuration
KINDS = ("16", "mixed", "tf32", "ieee")
DIMS = (64, 128, 256, 512)

# By compute capability (ten times major and minor), kind of product and largest D. "mixed" is
# 16-bit products with entries in float32, such as a float32 bank under autocast. No GPU has a
# matrix unit for full float32 ("ieee").
_ROWS = {
    (0, "ieee", 64): C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2)),
    (0, "ieee", 128): C(K(32, 16, 8, 2), K(64, 16, 8, 2), K(64, 32, 8, 2), K(32, 16, 8, 2)),
    (0, "ieee", 256): C(K(32, 32, 8, 1), K(64, 16, 8, 2), K(64, 16, 8, 2), K(32, 32, 8, 1)),
    (0, "ieee", 512): C(K(32, 16, 8, 2), K(32, 16, 8, 1), K(32, 16, 8, 1), K(32, 16, 8, 1)),
    (80, "16", 64): C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2), K(64, 32, 8, 2)),
    (80, "16", 128): C(K(64, 64, 8, 3), K(64, 32, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2, 255)),
    (80, "16", 256): C(K(64, 64, 8, 2), K(64, 64, 8, 1), K(64, 64, 8, 2), K(64, 32, 8, 2)),
    (80, "16", 512): C(
        K(32, 32, 8, 2, 255), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 32, 8, 1, 255)
    ),
    (80, "mixed", 64): C(K(128, 64, 8, 2), K(64, 64, 8, 3), K(64, 64, 8, 2), K(64, 32, 8, 2)),
    (80, "mixed", 128): C(K(64, 64, 8, 3), K(64, 32, 8, 1), K(64, 64, 8, 3), K(64, 64, 8, 1)),
    (80, "mixed", 256): C(K(64, 64, 8, 1), K(64, 32, 8, 1), K(64, 64, 8, 2), K(64, 32, 8, 1, 255)),
    (80, "mixed", 512): C(
        K(32, 32, 8, 1, 255), K(32, 32, 8, 1), K(32, 64, 8, 2), K(32, 16, 8, 1, 255)
    ),
    (80, "tf32", 64): C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 3), K(64, 16, 8, 2, 255)),
    (80, "tf32", 128): C(K(64, 64, 8, 1), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 64, 8, 2, 255)),
    (80, "tf32", 256): C(K(64, 32, 8, 2, 255), K(64, 32, 8, 1), K(64, 32, 8, 2), K(32, 32, 4, 2)),
    (80, "tf32", 512): C(K(32, 16, 8, 2), K(32, 16, 8, 2), K(32, 16, 8, 1), K(16, 16, 4, 1)),
    (90, "16", 64): C(K(128, 128, 8, 3), K(64, 32, 4, 2), K(128, 64, 8, 2), K(128, 64, 8, 2)),
    (90, "16", 128): C(K(128, 128, 8, 3), K(64, 32, 4, 2), K(128, 64, 8, 2), K(128, 32, 8, 2)),
    (90, "16", 256): C(K(128, 64, 8, 3), K(64, 32, 4, 1), K(128, 32, 8, 2), K(64, 32, 4, 1)),
    (90, "16", 512): C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1)),
    (90, "mixed", 64): C(K(128, 128, 8, 3), K(64, 32, 4, 2), K(128, 64, 8, 2), K(128, 64, 8, 2)),
    (90, "mixed", 128): C(K(128, 128, 8, 2), K(64, 32, 4, 2), K(128, 32, 8, 2), K(128, 32, 8, 2)),
    (90, "mixed", 256): C(K(128, 32, 8, 3), K(128, 32, 8, 1), K(64, 32, 8, 2), K(64, 16, 8, 1)),
    (90, "mixed", 512): C(K(32, 32, 16, 1), K(32, 32, 8, 1), K(32, 64, 8, 2), K(16, 32, 4, 1, 255)),
    (90, "tf32", 64): C(K(128, 64, 8, 2), K(64, 32, 4, 2), K(128, 32, 8, 2), K(128, 64, 8, 2)),
    (90, "tf32", 128): C(K(64, 64, 8, 2), K(64, 32, 4, 1), K(128, 32, 8, 2), K(128, 32, 8, 2)),
    (90, "tf32", 256): C(K(32, 32, 4, 2), K(32, 32, 8, 2), K(32, 64, 8, 2), K(32, 16, 4, 1, 255)),
    (90, "tf32", 512): C(K(32, 32, 8, 1), K(16, 32, 8, 2), K(32, 32, 8, 1), K(32, 16, 8, 2)),
    (100, "16", 64): C(
        K(128, 64, 8, 3), K(64, 64, 8, 3, 255), K(64, 64, 8, 3, 255), K(128, 32, 8, 2, 255)
    ),
    (100, "16", 128): C(
        K(128, 64, 8, 2, 255), K(64, 64, 8, 3), K(64, 64, 8, 3), K(128, 32, 8, 2, 255)
    ),
    (100, "16", 256): C(
        K(64, 64, 8, 2), K(64, 32, 8, 2, 255), K(64, 64, 8, 2), K(64, 32, 8, 2, 255)
    ),
    (100, "16", 512): C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(64, 32, 8, 2), K(32, 64, 8, 1)),
    (100, "mixed", 64): C(
        K(128, 64, 8, 3), K(64, 64, 8, 3), K(64, 64, 8, 3, 255), K(128, 32, 8, 2, 255)
    ),
    (100, "mixed", 128): C(
        K(128, 64, 8, 2, 255), K(64, 64, 8, 3), K(64, 64, 8, 3, 255), K(128, 32, 8, 2, 255)
    ),
    (100, "mixed", 256): C(
        K(64, 32, 8, 1, 255), K(64, 32, 8, 2, 255), K(64, 64, 8, 2, 255), K(64, 64, 8, 1, 255)
    ),
    (100, "mixed", 512): C(
        K(32, 32, 8, 1, 255), K(32, 32, 8, 1), K(64, 32, 8, 2), K(16, 64, 8, 1, 255)
    ),
    (100, "tf32", 64): C(
        K(128, 64, 8, 2, 255), K(64, 64, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 2, 255)
    ),
    (100, "tf32", 128): C(
        K(64, 64, 8, 2), K(64, 64, 8, 1, 255), K(64, 64, 8, 2), K(64, 32, 8, 2, 255)
    ),
    (100, "tf32", 256): C(K(32, 64, 8, 2), K(64, 32, 8, 1), K(64, 32, 8, 1), K(32, 64, 8, 1)),
    (100, "tf32", 512): C(K(32, 32, 8, 1), K(16, 32, 8, 2), K(32, 32, 8, 1), K(16, 32, 8, 1)),
    (86, "16", 64): C(K(128, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 4, 2), K(64, 16, 8, 1, 255)),
    (86, "16", 128): C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(32, 32, 4, 1, 255)),
    (86, "16", 256): C(K(64, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 1, 255)),
    (86, "16", 512): C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 16, 4, 1)),
    (86, "mixed", 64): C(K(128, 64, 8, 2), K(64, 32, 8, 2), K(64, 64, 4, 2), K(64, 16, 8, 1, 255)),
    (86, "mixed", 128): C(K(64, 64, 8, 2), K(64, 32, 8, 1), K(64, 64, 8, 2), K(64, 16, 8, 1, 255)),
    (86, "mixed", 256): C(K(64, 64, 8, 1), K(32, 32, 8, 2), K(64, 64, 8, 2), K(64, 32, 8, 1, 255)),
    (86, "mixed", 512): C(
        K(32, 32, 8, 1, 255), K(32, 32, 8, 1), K(32, 32, 8, 2), K(32, 16, 8, 1, 255)
    ),
    (86, "tf32", 64): C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 2), K(32, 32, 8, 1, 255)),
    (86, "tf32", 128): C(K(64, 64, 8, 2), K(64, 32, 8, 1), K(64, 64, 8, 2), K(32, 16, 4, 2, 255)),
    (86, "tf32", 256): C(K(32, 32, 4, 2), K(32, 16, 4, 1), K(16, 16, 8, 1), K(16, 32, 4, 1)),
    (86, "tf32", 512): C(
        K(16, 16, 8, 1), K(16, 16, 8, 1, 255), K(16, 16, 8, 1), K(16, 16, 4, 1, 255)
    ),
    (120, "16", 64): C(
        K(128, 64, 8, 2, 255), K(64, 32, 8, 2, 255), K(64, 64, 4, 2), K(64, 16, 8, 1, 255)
    ),
    (120, "16", 128): C(
        K(64, 64, 8, 2, 255), K(64, 32, 8, 2, 255), K(64, 64, 8, 2), K(64, 32, 8, 2)
    ),
    (120, "16", 256): C(
        K(64, 64, 8, 1, 255), K(32, 32, 8, 2), K(64, 64, 8, 2), K(16, 32, 8, 2, 255)
    ),
    (120, "16", 512): C(K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 32, 8, 2), K(32, 16, 8, 1)),
    (120, "mixed", 64): C(
        K(128, 64, 8, 2, 255), K(64, 32, 8, 2, 255), K(64, 64, 4, 2), K(64, 16, 8, 1, 255)
    ),
    (120, "mixed", 128): C(
        K(64, 64, 8, 1, 255), K(64, 32, 8, 1), K(64, 64, 8, 2), K(32, 32, 4, 1, 255)
    ),
    (120, "mixed", 256): C(
        K(64, 64, 8, 1, 255), K(32, 32, 8, 1), K(64, 64, 8, 2), K(16, 32, 8, 2, 255)
    ),
    (120, "mixed", 512): C(K(32, 32, 8, 1), K(32, 32, 8, 1), K(32, 32, 8, 2), K(32, 16, 8, 1, 255)),
    (120, "tf32", 64): C(K(128, 64, 8, 1), K(64, 32, 8, 3), K(64, 32, 4, 2, 255), K(32, 32, 4, 1)),
    (120, "tf32", 128): C(
        K(64, 64, 8, 1, 255), K(64, 32, 8, 1, 255), K(64, 64, 8, 2), K(64, 32, 8, 1, 255)
    ),
    (120, "tf32", 256): C(K(32, 32, 4, 2), K(32, 16, 8, 2, 255), K(16, 16, 8, 1), K(16, 32, 8, 1)),
    (120, "tf32", 512): C(
        K(16, 16, 4, 1, 255), K(16, 16, 8, 1), K(16, 16, 8, 1), K(16, 16, 4, 2, 255)
    ),
}
# A GPU without a row of its own uses that of another; 0 stands for all GPUs.
_LIKE = {80: 0, 86: 0, 89: 86, 90: 0, 100: 0, 120: 86}


def _row(card: int, kind: str, dim: int) -> Configurations:
    return _ROWS.get((card, kind, dim)) or _row(_LIKE[card], kind, dim)


TABLE = {
    card: {kind: {dim: _row(card, kind, dim) for dim in DIMS} for kind in KINDS} for card in _LIKE
}

# Tiles of the interpreter: small, so that small problems have many of them.
INTERPRETED = C(K(32, 32, 1, 1), K(16, 16, 1, 1), K(16, 32, 1, 1), K(32, 64, 1, 1))


def small_configuration(bytes_per_vector: int) -> Configuration:
    """Return the tile of a few anchors against themselves: many small programs, on any GPU."""
    return Configuration(16, max(16, min(32, (1 << 14) // bytes_per_vector)), 8, 2)


_tried: list[Configurations] = []


@contextmanager
def using(configurations: Configurations) -> Iterator[None]:
    """Use these tiles in every call inside the context, for tests of other rows of the table."""
    _tried.append(configurations)
    try:
        yield
    finally:
        _tried.pop()


def configurations_for(capability: int, kind: str, dim: int) -> Configurations:
    """Return the row of a GPU, or of the nearest older GPU of its generation."""
    if _tried:
        return _tried[-1]
    known = [card for card in TABLE if card <= capability and card // 10 == capability // 10]
    rows = TABLE[max(known)][kind] if known else TABLE[120][kind]
    return rows[min(largest for largest in rows if dim <= largest)]


def for_mining(configurations: Configurations) -> Configurations:
    """Return tiles that are the same for every pass, so that similarities are bit-identical."""
    shape = configurations.mined
    # In the pass with swapped rows and columns the streamed tile is large and fits only once.
    swapped = shape._replace(rows=shape.columns, columns=shape.rows, stages=1)
    return Configurations(shape, shape._replace(stages=1), swapped, shape)


def for_float32_product(entries: Configuration) -> Configuration:
    """Return the tile of the entries' gradient if its second product is in float32.

    The converted tile takes the registers of a second stage and of half the rows.
    """
    return entries._replace(rows=max(16, entries.rows // 2), stages=1)


def for_keys(mined: Configuration) -> Configuration:
    """Return the tile of the pass that compares random keys alone.

    Without products, more rows would take registers and spare nothing.
    """
    return mined._replace(rows=32, warps=max(4, mined.columns // 8))
