"""Kernels in Triton's interpreter, which is chosen when Triton is first imported.

These tests need a process of their own, which `test_in_the_interpreter.py` starts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAUNCHER = "test_in_the_interpreter.py"
OTHERS = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != LAUNCHER]
collect_ignore = [LAUNCHER] if INTERPRETED else OTHERS


@pytest.fixture(scope="session", autouse=True)
def _patched_once() -> Iterator[None]:
    """Prepare the language once a launch: Triton repeats it at each call inside of a kernel.

    That takes a third of the time, and finds nothing left to replace in the same modules.
    """
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # of another version of Triton
        yield
        return
    languages = {"language": interpreter.tl, "core": interpreter.tl.core}
    patch, scope, done = interpreter._patch_lang, interpreter._LangPatchScope(), set()

    def patch_once(fn: Any) -> Any:
        nonlocal scope
        if not scope._changes:  # it has been restored: this is a launch
            done.clear()
        modules = {
            name
            for name, module in languages.items()
            if any(value is module for value in fn.__globals__.values())
        }
        if done and modules <= done:
            return scope
        made = patch(fn)
        if not done:
            scope = made
        done.update(modules)
        return made

    interpreter._patch_lang = patch_once
    yield
    interpreter._patch_lang = patch


@pytest.fixture(autouse=True)
def _fine_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split small problems into many programs and chunks."""
    import triton.language as tl

    from pixcontrast._info_nce.fused import launch, layout
    from pixcontrast._info_nce.fused.kernels import blocks

    monkeypatch.setattr(launch, "MIN_BLOCKS", 1)
    monkeypatch.setattr(launch, "SPLIT_COST", 0.0)
    monkeypatch.setattr(layout, "INTERPRETED_PROCESSORS", 4)
    monkeypatch.setattr(blocks, "CHUNK", tl.constexpr(4))
