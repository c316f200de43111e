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
    from pixcontrast._equation import fused_launch, fused_layout, fused_passes, fused_selection

    monkeypatch.setattr(fused_launch, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(fused_layout, "INTERPRETED_PROCESSORS", 4)
    for module in (fused_layout, fused_passes, fused_selection):
        monkeypatch.setattr(module, "CHUNK", 4)
