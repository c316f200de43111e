"""Kernels in Triton's interpreter, which is chosen when Triton is first imported.

These tests need a process of their own, which `test_in_the_interpreter.py` starts.
"""

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAUNCHER = "test_in_the_interpreter.py"
OTHERS = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != LAUNCHER]
collect_ignore = [LAUNCHER] if INTERPRETED else OTHERS


@pytest.fixture(autouse=True)
def _fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split small problems into many programs and chunks."""
    from pixcontrast._info_nce.fused import layout, passes, splits, thresholds

    monkeypatch.setattr(splits, "MIN_BLOCKS", 1)
    monkeypatch.setattr(splits, "SPLIT_COST", 0.0)
    monkeypatch.setattr(layout, "INTERPRETED_PROCESSORS", 4)
    for module in (layout, passes, thresholds):
        monkeypatch.setattr(module, "CHUNK", 4)
