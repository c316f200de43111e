"""Random calls of every public name, each made of its number alone.

    python -m benchmarks.reliability.fuzz --first 0 --count 1000000 --out fuzz.jsonl

`--ranks 2` makes calls of two processes together (see rank_calls.py); `--backend triton` puts the
kernels in place of the backend that was drawn, for calls that they fit: on the CPU in Triton's
interpreter, under TRITON_INTERPRET=1, or on a card with `--device cuda`.

Each part of the numbers that is done is one line of the file, so that a run that was stopped goes
on where it stood; defects are printed and written with the number that repeats them:
`--first N --count 1`. The exit status is 1 where there are any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import torch

from benchmarks.reliability.calls import make_call
from benchmarks.reliability.memory import limited_memory
from benchmarks.reliability.oracle import SECONDS, defect_of
from benchmarks.reliability.placed import placed
from benchmarks.reliability.rank_fuzz import run_ranks
from pixcontrast._triton import Backend

PART = 1000
WATCHED = 20
"""Numbers between two settings of the watch that ends a hang, which starts a thread each time."""


def main(arguments: list[str] | None = None) -> int:
    """Go through the numbers that are not yet done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=PART)
    parser.add_argument("--out", type=Path, help="where parts that are done are noted")
    parser.add_argument("--ranks", type=int, default=1, help="processes that call together")
    parser.add_argument("--backend", choices=("dense", "tiled", "triton", "auto"))
    parser.add_argument("--device", default="cpu", help="where `info_nce` is called")
    options = parser.parse_args(arguments)
    if options.ranks > 1 and (options.backend or options.device != "cpu"):
        parser.error("--ranks: expected neither --backend nor --device beside it")
    torch.set_num_threads(1)
    done = _done(options.out)
    total: Counter[str] = Counter()
    with limited_memory():
        for first in range(options.first, options.first + options.count, PART):
            if first in done:
                continue
            stop = min(first + PART, options.first + options.count)
            numbers = range(first, stop)
            if options.ranks > 1:
                part = run_ranks(numbers, options.ranks)
            else:
                part = run(numbers, options.backend, options.device)
            total.update(part["ended"])
            for number, what in part["defects"].items():
                print(number, what, flush=True)
                total["defects"] += 1
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps({"first": first, "count": stop - first, **part}) + "\n")
    print(dict(total))
    return 1 if total["defects"] else 0


def run(numbers: range, backend: Backend | None = None, device: str = "cpu") -> dict[str, Any]:
    """How many calls ended in which way, and what was wrong with which."""
    ended: Counter[str] = Counter()
    defects: dict[str, str] = {}
    # As `torch.manual_seed` does for the CPU, without keeping a traceback for each of its devices.
    seed = torch.default_generator.manual_seed
    for number in numbers:
        if number % WATCHED == 0 or number == numbers.start:
            # What hangs outside of Python is ended, with a traceback.
            faulthandler.dump_traceback_later(4 * SECONDS, exit=True)
        seed(number)
        call = placed(make_call(number), backend, device)
        if call is None:
            continue
        seed(number)
        # Triton's interpreter counts with NumPy, which would warn of an infinity that is meant.
        with numpy.errstate(all="ignore" if backend == "triton" else "warn"):
            how, wrong = defect_of(call)
        ended[how] += 1
        ended["calls"] += 1
        if wrong is not None:
            defects[str(number)] = f"{call.target}({', '.join(call.spoiled)}): {wrong}"
    faulthandler.cancel_dump_traceback_later()
    return {"ended": dict(ended), "defects": defects}


def _done(path: Path | None) -> set[int]:
    if path is None or not path.exists():
        return set()
    return {json.loads(line)["first"] for line in path.read_text().splitlines()}


if __name__ == "__main__":
    raise SystemExit(main())
