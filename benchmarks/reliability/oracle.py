"""What a call may end in: a correct value, or an error of the package that names the argument."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pixcontrast
from benchmarks.reliability import truth
from benchmarks.reliability.calls import Call
from benchmarks.reliability.limits import time_limit
from benchmarks.reliability.snapshot import snapshots

SECONDS = 30
"""Time limit of a call. All sizes are tiny, so a longer call is a hang."""
PACKAGE = str(Path(pixcontrast.__file__).parent)
NAMED = re.compile(r"[\w, ]+(\[\d+\])?: ")
"""The start of the package's error messages: the name of the argument."""
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory")


def defect_of(call: Call) -> tuple[str, str | None]:
    """Make a call and judge it.

    Returns:
        How it ended (`"value"`, `"refused"`, `"no memory"` or `"raised"`), and a description of
        the defect, or None.
    """
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
        ended = "value"
        try:
            wrong = truth.wrong_with(call, known, result, gradients)
        except Exception as error:  # an error in the judge leaves the call unjudged
            wrong = f"not judged: {type(error).__name__}: {error}"
    for snapshot in before:
        wrong = wrong or snapshot.changes()
    return ended, wrong


def judge_error(error: Exception) -> tuple[str, str | None]:
    """Judge an exception: how the call ended, and a description of the defect, or None."""
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
        return "refused", None  # a rule of PyTorch; its message names the fix
    where = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
    place = f"{Path(where.filename).name}:{where.name}"
    return "raised", f"{type(error).__name__} from {place}: {message.splitlines()[0][:200]}"


def _gradients(result: Any, call: Call) -> dict[str, Tensor]:
    """Differentiate the sum of a loss by every argument that requires a gradient."""
    loss = result[0] if isinstance(result, tuple) and call.target == "loss" else result
    leaves = dict(_leaves(call.arguments))
    if not isinstance(loss, Tensor) or not loss.requires_grad or not leaves:
        return {}
    found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def _leaves(arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that require a gradient; those in sequences are named `contrast[1]`."""
    for name, value in arguments.items():
        if isinstance(value, (list, tuple)):
            yield from _leaves({f"{name}[{index}]": one for index, one in enumerate(value)})
        elif isinstance(value, Tensor) and value.requires_grad:
            yield name, value
