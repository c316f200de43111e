"""The tiles that are shipped for other cards than this one, as parameters of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ahead_of_time import SHARED_MEMORY
from internals import configuration_table
from on_gpu import DEVICE, REHEARSAL

MODE_OF_KIND = {"16": "bf16", "mixed": "bf16", "tf32": "tf32", "ieee": "float32"}


@dataclass(frozen=True)
class Shipped:
    """One row of the table: tiles, for one kind of product and vectors of up to `largest_dim`."""

    tiles: Any
    kind: str
    largest_dim: int

    @property
    def mode(self) -> str:
        return MODE_OF_KIND[self.kind]


def configurations_of_other_cards(capability: int) -> list[Any]:
    """Rows that this card does not use itself, each once, as parameters of a test.

    The other tests launch this card's own rows. Rows of cards with more shared memory for a
    program are left out because they need not fit, and so are rows that differ in the tile of
    mining alone, which the test does not launch.
    """
    table = configuration_table()
    own = table.get(capability)
    if own is None:
        reason = f"the table has no row of its own for compute capability {capability}"
        return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))]
    cards: dict[Shipped, list[int]] = {}
    for card, kinds in table.items():
        for kind, rows in kinds.items():
            for largest_dim, tiles in rows.items():
                fits = SHARED_MEMORY[card] <= SHARED_MEMORY[capability]
                mined = own[kind][largest_dim].mined
                if fits and tiles._replace(mined=mined) != own[kind][largest_dim]:
                    cards.setdefault(Shipped(tiles, kind, largest_dim), []).append(card)
    return [
        pytest.param(row, id=f"{row.kind}-{row.largest_dim}-sm_{'_'.join(map(str, of))}")
        for row, of in cards.items()
    ]


def capability_here() -> int:
    """Of this card, as ten times major and minor; in rehearsal that of an H100."""
    if not REHEARSAL and not torch.cuda.is_available():
        return 90
    major, minor = (9, 0) if REHEARSAL else torch.cuda.get_device_capability(DEVICE)
    return 10 * major + minor
