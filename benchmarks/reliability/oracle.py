"""What a call may answer: a right value, or an error of ours."""

from __future__ import annotations

import re
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import pixcontrast
from benchmarks.reliability import truth
from benchmarks.reliability.calls import Call
from benchmarks.reliability.snapshot import snapshots

SECONDS = 30
"""Of a call: its sizes are tiny, so that longer is a hang."""
PACKAGE = str(Path(pixcontrast.__file__).parent)
NAMED = re.compile(r"[\w, ]+(\[\d+\])?: ")
"""How a message of ours starts: with the argument it is about."""
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory")


class HangError(Exception):
    """A call took too long."""


def defect_of(call: Call) -> tuple[str, str | None]:
    """How the call ended ("value", "refused" or "no memory"), and what is wrong, or None."""
    before = snapshots(call.arguments.values())
    known = truth.before(call)
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call.function(**call.arguments)
            gradients = _gradients(result, call)
    except Exception as error:
        ended, wrong = judge_error(error)
    else:
        # A judge that stumbles has not judged.
        ended, wrong = "value", "not judged"
        try:
            wrong = truth.wrong_with(call, known, result, gradients)
        except Exception as error:
            wrong = f"not judged: {type(error).__name__}: {error}"
    for snapshot in before:
        wrong = wrong or snapshot.changes()
    return ended, wrong


def judge_error(error: Exception) -> tuple[str, str | None]:
    """How a call ended that raised, and what is wrong with the error, or None."""
    frames = traceback.extract_tb(error.__traceback__)
    message = str(error)
    ours = frames[-1].filename.startswith(PACKAGE) and NAMED.match(message) is not None
    if ours and type(error) in (TypeError, ValueError):
        return "refused", None
    if ours and type(error) is NotImplementedError and message.startswith(("gather", "sharded")):
        return "refused", None
    if type(error) is RuntimeError and NO_MEMORY.search(message):
        return "no memory", None
    if type(error) is RuntimeError and message.startswith("Inference tensors cannot be saved"):
        return "refused", None  # PyTorch's own rule, and its message names the fix
    where = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
    place = f"{Path(where.filename).name}:{where.name}"
    return "raised", f"{type(error).__name__} from {place}: {message.splitlines()[0][:200]}"


def _gradients(result: Any, call: Call) -> dict[str, Tensor]:
    """Of the sum of the loss, by each argument that requires one."""
    loss = result[0] if isinstance(result, tuple) and call.target == "loss" else result
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return {}
    named = dict(_leaves(call.arguments))
    if not named:
        return {}
    found = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def _leaves(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that require a gradient, those in sequences as `contrast[1]`."""
    for name, value in arguments.items():
        if isinstance(value, (list, tuple)):
            yield from _leaves({f"{name}[{number}]": one for number, one in enumerate(value)})
        elif isinstance(value, Tensor) and value.requires_grad:
            yield name, value


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """What takes longer, in Python, ends in a `HangError`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
