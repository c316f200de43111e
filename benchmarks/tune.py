"""Search for tiles of the fused kernels on this card, and print a row for their table.

    python -m benchmarks.tune --mode bf16 --dims 64 128 256 512

The package ships fixed tiles (`pixcontrast/_info_nce/fused/configurations.py`) and never searches.
This command tries others, one pass after the other, leaves out what does not compile, does not fit
or gives another loss or gradient, and prints the fastest in the form of that table.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import NO_DEVICE, REFUSED
from benchmarks._measure.environment import describe_device
from benchmarks._measure.timers import attempt, seconds_of
from benchmarks._ways.problem import MODES, Case, Problem
from pixcontrast._info_nce.fused.configurations import (
    Configuration,
    Configurations,
    configurations_for,
    using,
)
from pixcontrast.functional import info_nce

KINDS = {"bf16": "16", "tf32": "tf32", "float32": "ieee"}
PASSES = ("denominator", "positives", "entries")
ROWS, COLUMNS, WARPS, STAGES = (16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
Trial = Callable[[], list[Tensor]]


def main(arguments: list[str] | None = None) -> int:
    """Print a row of the table for each D; return the exit status."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_DEVICE)
        return REFUSED
    device = torch.device("cuda")
    print(describe_device(device))
    torch.set_float32_matmul_precision("highest" if options.mode == "float32" else "high")
    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    for dim in options.dims:
        start = configurations_for(capability, KINDS[options.mode], dim)
        trials = draw(options.mode, options.anchors, options.entries, dim, device)
        found = search(start, trials, options, device)
        print(as_row((capability, KINDS[options.mode], dim), found), flush=True)
    return 0


def search(
    start: Configurations,
    trials: dict[str, Trial],
    options: argparse.Namespace,
    device: torch.device,
) -> Configurations:
    """Return the fastest tiles of each pass, tried beside the best tiles so far of the others."""
    best = start
    for name in PASSES:
        trial = trials["itself" if name == "entries" else "bank"]
        with using(best):
            expected, shortest = trial(), seconds_of(trial, device, options.repeats, untimed=1)
        for candidate in candidates(name, best):
            with using(candidate):
                job = partial(
                    timed, trial, expected, MODES[options.mode].tolerance, options.repeats, device
                )
                found = attempt(job, device)
            chosen = tuple(getattr(candidate, name))
            said = found if isinstance(found, str) else f"{1000 * found:.3f} ms"
            print(f"  {name} {chosen}: {said}", flush=True)
            if not isinstance(found, str) and found < shortest:
                best, shortest = candidate, found
    return best


def candidates(name: str, best: Configurations) -> Iterator[Configurations]:
    """Yield every tile of a pass beside the tiles of the others, as far as the table allows."""
    for shape in itertools.product(ROWS, COLUMNS, WARPS, STAGES):
        one = best._replace(**{name: Configuration(*shape)})
        if name == "denominator" and one.denominator.columns % one.positives.columns:
            narrower = one.positives._replace(columns=one.denominator.columns)
            one = one._replace(positives=narrower)
        if one.denominator.columns % one.positives.columns == 0:
            yield one


def timed(
    trial: Trial, expected: list[Tensor], tolerance: float, repeats: int, device: torch.device
) -> float:
    """Return the seconds of a trial, and raise if its result is not the expected one."""
    for made, right in zip(trial(), expected, strict=True):
        if not bool((made - right).norm() <= tolerance * right.norm()):
            raise ValueError("another result")
    return seconds_of(trial, device, repeats, untimed=1)


def draw(mode: str, anchors: int, entries: int, dim: int, device: torch.device) -> dict[str, Trial]:
    """Return forward and backward of anchors against a bank, and against themselves."""
    problem = Problem.draw(Case(mode, anchors, entries, dim), device)

    def run(*contrast: Tensor | None) -> list[Tensor]:
        loss = info_nce(problem.anchors, problem.anchor_labels, *contrast, backend="triton")
        (gradient,) = torch.autograd.grad(loss, problem.anchors)
        return [loss.detach().float(), gradient.float()]

    return {"bank": lambda: run(problem.entries, problem.entry_labels), "itself": run}


def as_row(key: tuple[int, str, int], best: Configurations) -> str:
    """Return a line of `configurations.py`."""
    return f"{key}: C({', '.join(f'K{tuple(tile)}' for tile in best)}),"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("tune", __doc__)
    add = parser.add_argument
    add("--mode", choices=tuple(KINDS), default="bf16")
    add("--dims", nargs="+", type=int, default=[64, 128, 256, 512])
    add("--anchors", type=int, default=1024)
    add("--entries", type=int, default=190_000)
    add("--repeats", type=int, default=10)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
