"""Search for tiles of the fused kernels on this card, and print a row for their table.

    python -m benchmarks.tune --mode bf16 --dims 64 128 256 512

The package ships fixed tiles (`pixcontrast/_info_nce/fused/configurations.py`) and never searches.
This command tries others, one pass after the other, leaves out what does not compile, does not fit
or gives another loss or gradient, and prints the fastest in the form of that table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import REFUSED, has_device, matmul_precision
from benchmarks._measure.environment import describe_device
from benchmarks._measure.timers import attempt, seconds_of
from benchmarks._ways.formulas import Losses, relative_error
from benchmarks._ways.problem import MODES, Case, Problem
from benchmarks._ways.ways import make_runs
from pixcontrast._info_nce.fused import configurations as tiles

KINDS = {"bf16": "16", "tf32": "tf32", "float32": "ieee"}
ROWS, COLUMNS, WARPS, STAGES = (16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
Trial = Callable[[], Losses]


def main(arguments: list[str] | None = None) -> int:
    """Print a row of the table for each D; return the exit status."""
    parser = command_parser("tune", __doc__)
    add = parser.add_argument
    add("--mode", choices=tuple(KINDS), default="bf16")
    add("--dims", nargs="+", type=int, default=[64, 128, 256, 512])
    add("--anchors", type=int, default=1024)
    add("--entries", type=int, default=190_000)
    add("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    if not has_device("cuda"):
        return REFUSED
    device = torch.device("cuda")
    print(describe_device(device))
    major, minor = torch.cuda.get_device_capability()
    for dim in options.dims:
        key = (10 * major + minor, KINDS[options.mode], dim)
        start = tiles.configurations_for(*key)
        case = Case(options.mode, options.anchors, options.entries, dim)
        with matmul_precision(MODES[options.mode].precision):
            print(as_row(key, search(start, case, options.repeats, device)), flush=True)
    return 0


def search(
    start: tiles.Configurations, case: Case, repeats: int, device: torch.device
) -> tiles.Configurations:
    """Return the fastest tiles of each pass, tried beside the best tiles so far of the others."""
    best = start
    # The entries' gradient is made where anchors are contrasted with themselves.
    for name in ("denominator", "positives", "entries"):
        one = case._replace(entries=None) if name == "entries" else case
        trial = cast(Trial, make_runs(one, Problem.draw(one, device), ("info_nce",))["info_nce"])
        with tiles.using(best):
            expected, shortest = trial(), seconds_of(trial, device, repeats, untimed=1)
        for candidate in candidates(name, best):
            job = partial(timed, trial, expected, MODES[case.mode].tolerance, repeats, device)
            with tiles.using(candidate):
                found = attempt(job, device)
            said = found if isinstance(found, str) else f"{1000 * found:.3f} ms"
            print(f"  {name} {tuple(getattr(candidate, name))}: {said}", flush=True)
            if not isinstance(found, str) and found < shortest:
                best, shortest = candidate, found
    return best


def candidates(name: str, best: tiles.Configurations) -> Iterator[tiles.Configurations]:
    """Yield every tile of a pass beside the tiles of the others, as far as the table allows."""
    for shape in itertools.product(ROWS, COLUMNS, WARPS, STAGES):
        one = best._replace(**{name: tiles.Configuration(*shape)})
        if name == "denominator" and one.denominator.columns % one.positives.columns:
            narrower = one.positives._replace(columns=one.denominator.columns)
            one = one._replace(positives=narrower)
        if one.denominator.columns % one.positives.columns == 0:
            yield one


def timed(
    trial: Trial, expected: Losses, tolerance: float, repeats: int, device: torch.device
) -> float:
    """Return the seconds of a trial, and raise if its result is not the expected one."""
    if not relative_error(trial(), expected) <= tolerance:
        raise ValueError("another result")
    return seconds_of(trial, device, repeats, untimed=1)


def as_row(key: tuple[int, str, int], best: tiles.Configurations) -> str:
    """Return a line of `configurations.py`."""
    return f"{key}: C({', '.join(f'K{tuple(tile)}' for tile in best)}),"


if __name__ == "__main__":
    raise SystemExit(main())
