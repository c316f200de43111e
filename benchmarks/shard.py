"""A part of the tests, for a process of several: `pytest -p benchmarks.shard --shard 2/8`.

Kernels are compiled as tests need them, on the processors: side by side that takes a fraction of
the time. Tests that stand together share kernels and stay together.
"""

from __future__ import annotations

import pytest

BLOCK = 8


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="which part, counted from 0, of how many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = (int(part) for part in config.getoption("--shard").split("/"))
    mine = [item for place, item in enumerate(items) if place // BLOCK % count == number]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine
