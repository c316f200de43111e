"""Random calls of every public name; a number determines each call.

    python -m benchmarks.reliability.fuzz --first 0 --count 1000000 --out fuzz.jsonl

`--ranks 2` makes calls of two processes together. `--backend triton` replaces the backend of the
calls that the kernels support: on the CPU in Triton's interpreter, under TRITON_INTERPRET=1, or on
a GPU with `--device cuda`.

Each finished part of the numbers is one line of the file, so that a stopped run continues where it
was. Defects are printed and written with their number; `--first N --count 1` repeats one. The exit
status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._measure.arguments import command_parser
from benchmarks._ranks.pool import Ranks
from benchmarks.reliability.calls import make_call
from benchmarks.reliability.judge import defect_of, wrong_with
from benchmarks.reliability.perform import SECONDS, Answer, answer_of, limited_memory, placed

PART = 1000
WATCHED = 20
"""The watchdog against hangs starts a thread, so it is set once for this many calls."""
COLLECTIVE = 20
"""Time limit of a collective in seconds; ranks never wait that long unless one hangs."""
BROKEN = re.compile(r"[Tt]imed out|[Tt]imeout|Connection|closed by peer|reset by peer")


def main(arguments: list[str] | None = None) -> int:
    """Make the calls of all numbers that are not finished."""
    options = _options(arguments)
    torch.set_num_threads(1)
    lines = options.out.read_text() if options.out and options.out.exists() else ""
    done = {json.loads(line)["first"] for line in lines.splitlines()}
    total: Counter[str] = Counter()
    end = options.first + options.count
    with limited_memory():
        for first in range(options.first, end, PART):
            if first in done:
                continue
            numbers = range(first, min(first + PART, end))
            if options.ranks > 1:
                part = run_ranks(numbers, options.ranks)
            else:
                part = run(numbers, options.backend, options.device)
            total.update(part["ended"], defects=len(part["defects"]))
            for number, defect in part["defects"].items():
                print(number, defect, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps({"first": first, "count": len(numbers), **part}) + "\n")
    print({name: count for name, count in total.items() if count})
    return 1 if total["defects"] else 0


def run(numbers: range, backend: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Make the calls of some numbers; returns how many ended in which way, and the defects."""

    def outcomes() -> Iterator[tuple[int, str, str | None]]:
        for number in numbers:
            if number % WATCHED == 0 or number == numbers.start:
                # Ends a hang outside of Python, with a traceback.
                faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
            call = placed(make_call(number), backend, device)
            if call is not None:
                # Triton's interpreter uses NumPy, which would warn of expected infinities.
                with np.errstate(all="ignore" if backend == "triton" else "warn"):
                    how, wrong = defect_of(call)
                yield number, how, None if wrong is None else f"{call}: {wrong}"
        faulthandler.cancel_dump_traceback_later()

    return _counted(outcomes())


def run_ranks(numbers: range, size: int) -> dict[str, Any]:
    """Make the calls of some numbers on `size` ranks; returns counts and defects."""

    def outcomes() -> Iterator[tuple[int, str, str | None]]:
        ranks = Ranks(size, COLLECTIVE)
        try:
            for number in numbers:
                how, wrong, broken = outcome(ranks, number)
                yield number, how, wrong
                if broken:
                    ranks.close()
                    ranks = Ranks(size, COLLECTIVE)
        finally:
            ranks.close()

    return _counted(outcomes())


def _counted(outcomes: Iterator[tuple[int, str, str | None]]) -> dict[str, Any]:
    ended: Counter[str] = Counter()
    defects: dict[str, str] = {}
    for number, how, wrong in outcomes:
        ended.update((how, "calls"))
        if wrong is not None:
            defects[str(number)] = wrong
    return {"ended": dict(ended), "defects": defects}


def outcome(ranks: Ranks, number: int) -> tuple[str, str | None, bool]:
    """Make one call on all ranks.

    Returns:
        How it ended, a description of the defect or None, and whether the ranks must be replaced.
    """
    calls = [make_call(number, rank, ranks.size) for rank in range(ranks.size)]
    one = range(number, number + 1)
    try:
        answers = [a for (a,) in ranks.run(answers_of, ranks.size, one, seconds=2 * SECONDS)]
    except (TimeoutError, EOFError, ConnectionError) as error:
        return "hang", f"{calls[0]}: a hang: {error}", True
    wrong = wrong_with(calls, answers)
    broken = any(BROKEN.search(answer["wrong"] or "") for answer in answers)
    broken |= len({answer["ended"] for answer in answers}) > 1
    return answers[0]["ended"], None if wrong is None else f"{calls[0]}: {wrong}", broken


def answers_of(group: Any, rank: int, size: int, numbers: range) -> list[Answer]:
    """Make the calls of some numbers on one of `size` ranks."""
    with limited_memory():
        return [answer_of(make_call(number, rank, size), group) for number in numbers]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_parser("reliability.fuzz", __doc__)
    add = parser.add_argument
    add("--first", type=int, default=0, metavar="N")
    add("--count", type=int, default=PART, metavar="N")
    add("--out", type=Path, help="file that records finished parts")
    add("--ranks", type=int, default=1, metavar="W", help="processes that call together")
    add("--backend", choices=("dense", "tiled", "triton", "auto"))
    add("--device", default="cpu", help="device of the calls of info_nce")
    options = parser.parse_args(arguments)
    if options.ranks > 1 and (options.backend or options.device != "cpu"):
        parser.error("--ranks: expected neither --backend nor --device; got both")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
