"""The configurations of the fused kernels that are shipped: which there are, and how to force one.

All that the tests know of the shape of that table stands here.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from on_gpu import BACKEND, DEVICE

from pixcontrast.functional import info_nce

MODULE = "pixcontrast._info_nce.fused.configurations"
MODES_OF_KIND = {"16": ("bf16", "fp16"), "tf32": ("tf32",), "ieee": ("float32",)}


@dataclass(frozen=True)
class Shipped:
    """One row: the tiles, for which products and up to which D, and the cards that have it."""

    tiles: Any
    kind: str
    largest_dim: int
    cards: tuple[int, ...]

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES_OF_KIND[self.kind]


def shipped_configurations() -> list[Any]:
    """Every row there is, each once, as parameters of a test; one that says why where none is."""
    try:
        table = import_module(MODULE).TABLE
    except ImportError as error:
        return [_none(f"no table of configurations: {error}")]
    try:
        cards: dict[tuple[str, int, Any], list[int]] = {}
        for card, kinds in table.items():
            for kind, row in kinds.items():
                for largest_dim, tiles in row.items():
                    cards.setdefault((kind, largest_dim, tiles), []).append(card)
        return [
            pytest.param(
                Shipped(tiles, kind, largest_dim, tuple(where)),
                id=f"{kind}-{largest_dim}-sm_{'_'.join(map(str, where))}",
            )
            for (kind, largest_dim, tiles), where in cards.items()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        return [_none(f"the table of configurations is of another shape: {error}")]


@contextmanager
def forced(configuration: Shipped, monkeypatch: pytest.MonkeyPatch):
    """Every choice of tiles is this one; skipped where another card's does not fit this card."""
    chosen = 0

    def choose(*args: Any, **kwargs: Any) -> Any:
        nonlocal chosen
        chosen += 1
        return configuration.tiles

    # A module that is imported later would keep the function it is to have for one test alone.
    info_nce(torch.eye(2, device=DEVICE), torch.zeros(2, device=DEVICE).long(), backend=BACKEND)
    name = "configurations_for"
    users = [
        module
        for key, module in list(sys.modules.items())
        if key.startswith("pixcontrast") and callable(getattr(module, name, None))
    ]
    for module in users:
        monkeypatch.setattr(module, name, choose)
    try:
        yield
    except Exception as error:
        major, minor = torch.cuda.get_device_capability() if DEVICE.type == "cuda" else (0, 0)
        is_other = 10 * major + minor not in configuration.cards
        if is_other and type(error).__name__ == "OutOfResources":
            pytest.skip(f"does not fit this card: {error}")
        raise
    assert chosen, "the kernels did not ask for their configuration: nothing was forced"


def _none(reason: str) -> Any:
    return pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))
