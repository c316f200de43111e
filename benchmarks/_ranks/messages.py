"""Counting the messages that a process sends through `torch.distributed`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed

from benchmarks._ranks.costs import Message

# Newer versions of PyTorch have other names for some of them.
GATHERS = ("all_gather_into_tensor", "all_gather_single")
EXCHANGES = ("all_to_all_single",)
SUMS = ("all_reduce",)
UNUSED = (
    *("all_gather", "all_gather_object", "all_to_all", "barrier", "broadcast", "gather"),
    *("broadcast_object_list", "irecv", "isend", "recv", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "send"),
)
"""Collectives that the library does not use; they are counted by name, without a size."""


@contextmanager
def counted_messages(ranks: int) -> Iterator[list[Message]]:
    """Record the collectives that are called inside the context, in order."""
    found: list[Message] = []
    originals = {
        name: getattr(distributed, name)
        for name in (*GATHERS, *EXCHANGES, *SUMS, *UNUSED)
        if hasattr(distributed, name)
    }
    is_outer = True

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal is_outer
            if not is_outer:  # a collective implemented by another one
                return original(*arguments, **options)
            found.append(_message(name, arguments, ranks))
            is_outer = False
            try:
                return original(*arguments, **options)
            finally:
                is_outer = True

        return call

    for name, original in originals.items():
        setattr(distributed, name, counted(name, original))
    try:
        yield found
    finally:
        for name, original in originals.items():
            setattr(distributed, name, original)


def _message(name: str, arguments: tuple[Any, ...], ranks: int) -> Message:
    if name in GATHERS:
        return Message("", "all-gather", arguments[1].nbytes)
    if name in EXCHANGES:
        return Message("", "all-to-all", arguments[1].nbytes // ranks)
    if name in SUMS:
        return Message("", "sum", arguments[0].nbytes)
    return Message("", name, 0)
