"""How many launches a run on a GPU makes, counted in Triton's interpreter on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes
from waits import Launches

# What allocates or describes memory without a launch.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "promote_types", "_unsafe_view"),
}


class Launch(NamedTuple):
    """An operator or a kernel, and the file of the package that called it."""

    name: str
    file: Path


class Counts(Launches):
    """The launches of what runs inside, in order. Refuses what waits.

    A launch is a call of a PyTorch operator that does work, or of a kernel, which is not executed.
    What a kernel would write is 0. Code that asks finds neither a mode nor a CPU.
    """

    def __init__(self, monkeypatch: Any) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        from triton.runtime.interpreter import InterpretedFunction

        from pixcontrast import _check, _triton
        from pixcontrast._info_nce import problem
        from pixcontrast._pixels import regions

        def launch(kernel: Any, *_: Any, **__: Any) -> None:
            self._record(kernel.fn.__name__)

        monkeypatch.setattr(InterpretedFunction, "run", launch)
        monkeypatch.setattr(_check, "values_can_be_seen", lambda tensor: False)
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: True)
        for module in (_triton, problem, regions):
            monkeypatch.setattr(module, "is_eager", lambda tensor: True)
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, _zeroed(getattr(owner, name)))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        does_work = any(isinstance(made, torch.Tensor) and made.numel() for made in outputs)
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if does_work and not func.is_view and name not in FREE:
            self._record(name)
        return result

    def _record(self, name: str) -> None:
        self.launches.append(Launch(name, _caller()))


def _caller() -> Path:
    """The innermost file of the package that is running; `autograd` outside of it."""
    import pixcontrast

    package = Path(pixcontrast.__file__).parent
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(package) and path.name != "_launch.py":  # it launches for others
            return path.relative_to(package)
        frame = frame.f_back
    return Path("autograd")


def _zeroed(allocate: Any) -> Any:
    def zeros(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            made = allocate(*args, **kwargs)
            with _disable_current_modes():
                return made.zero_()

    return zeros
