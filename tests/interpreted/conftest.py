"""Kernels in Triton's interpreter, which is chosen when Triton is first imported.

So these tests need a process of their own: `tests/test_interpreter.py` starts it.
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True)
def _fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little problems in many programs, shares and chunks."""
    from pixcontrast._info_nce.fused import launch, layout, thresholds
    from pixcontrast._info_nce.fused import passes as fused_passes

    monkeypatch.setattr(launch, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(layout, "INTERPRETED_PROCESSORS", 4)
    for module in (layout, fused_passes, thresholds):
        monkeypatch.setattr(module, "CHUNK", 4)
