"""Counts what a process sends through `torch.distributed`, whoever asks for it."""

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
OTHERS = (
    "all_gather",
    "all_gather_object",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "irecv",
    "isend",
    "recv",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "send",
)


@contextmanager
def counted_messages(ranks: int) -> Iterator[list[Message]]:
    """The collectives that are called inside, in order.

    Those that this library does not use are counted by their names, without a size.
    """
    found: list[Message] = []
    originals = {
        name: getattr(distributed, name)
        for name in (*GATHERS, *EXCHANGES, *SUMS, *OTHERS)
        if hasattr(distributed, name)
    }
    outer = [True]

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            if not outer[0]:  # one collective made of another
                return original(*arguments, **options)
            found.append(_message(name, arguments, ranks))
            outer[0] = False
            try:
                return original(*arguments, **options)
            finally:
                outer[0] = True

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
