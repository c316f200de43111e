"""Tests that need another environment: a process of its own for each part of a folder.

A part is an item of the outer run, so that parallel workers share the folder.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PART = "PIXCONTRAST_TEST_PART"
"""The environment variable that names the part, as `1/4`, counted from 0."""


def run_part(launcher: str, number: int, count: int, *options: str, **environment: str) -> int:
    """Run every count-th test of the launcher's folder, except for the launcher itself.

    `options` are those of pytest.

    Returns:
        how many tests passed; the caller compares it with what it expects, so that a run that
        collects none is seen.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, str(Path(launcher).parent), f"--ignore={launcher}", *options],
        capture_output=True,
        text=True,
        env={**os.environ, PART: f"{number}/{count}", **environment},
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert "skipped" not in ended.stdout
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None, ended.stdout
    return int(passed[1])


def select_part(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the part that the environment names, if it names one."""
    number, count = map(int, os.environ.get(PART, "0/1").split("/"))
    if count > 1:
        others = [item for place, item in enumerate(items) if place % count != number]
        config.hook.pytest_deselected(items=others)
        items[:] = items[number::count]
