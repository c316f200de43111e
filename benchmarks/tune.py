"""Search for tiles of the fused kernels on the card at hand, and print a row for their table.

    python -m benchmarks.tune --mode bf16 --dims 64 128 256 512

Nothing searches by itself: the package ships fixed tiles (`kernels/configurations.py`). This tries
others, one pass after the other, leaves out what does not compile, does not fit, or comes to
another loss or gradient, and prints the fastest as that table has it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks._measure.environment import describe_device
from benchmarks._measure.timers import attempt, seconds_of
from benchmarks._ways.problem import MODES
from pixcontrast._info_nce.fused.configurations import (
    Configuration,
    Configurations,
    configurations_for,
    using,
)
from pixcontrast.functional import info_nce

KINDS = {"bf16": "16", "tf32": "tf32", "float32": "ieee"}
TOLERANCES = {"bf16": 2e-2, "tf32": 5e-3, "float32": 1e-4}
PASSES = ("denominator", "positives", "entries")
ROWS, COLUMNS, WARPS, STAGES = (16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3, 4)
Trial = Callable[[], list[Tensor]]


def main(arguments: list[str] | None = None) -> int:
    """Print a row of the table for each D."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device here")
        return 2
    device = torch.device("cuda")
    print(describe_device(device))
    torch.set_float32_matmul_precision("highest" if options.mode == "float32" else "high")
    capability = 10 * torch.cuda.get_device_capability()[0] + torch.cuda.get_device_capability()[1]
    for dim in options.dims:
        start = configurations_for(capability, KINDS[options.mode], dim)
        trials = draw(options.mode, options.anchors, options.entries, dim, device)
        print(as_row(dim, search(start, trials, options, device)), flush=True)
    return 0


def search(
    start: Configurations,
    trials: dict[str, Trial],
    options: argparse.Namespace,
    device: torch.device,
) -> Configurations:
    """The fastest tiles of each pass, those of the others being the best so far."""
    best = start
    for name in PASSES:
        trial = trials["itself" if name == "entries" else "bank"]
        with using(best):
            expected, shortest = trial(), seconds_of(trial, device, options.repeats, untimed=1)
        for candidate in candidates(name, best):
            with using(candidate):
                job = partial(
                    timed, trial, expected, TOLERANCES[options.mode], options.repeats, device
                )
                found = attempt(job, device)
            chosen = tuple(getattr(candidate, name))
            said = found if isinstance(found, str) else f"{1000 * found:.3f} ms"
            print(f"  {name} {chosen}: {said}", flush=True)
            if not isinstance(found, str) and found < shortest:
                best, shortest = candidate, found
    return best


def candidates(name: str, best: Configurations) -> Iterator[Configurations]:
    """Every tile of a pass beside the tiles of the others, as far as the table allows it."""
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
    """Seconds of a trial that comes to what is expected."""
    for made, right in zip(trial(), expected, strict=True):
        if not bool((made - right).norm() <= tolerance * right.norm()):
            raise ValueError("another result")
    return seconds_of(trial, device, repeats, untimed=1)


def draw(mode: str, anchors: int, entries: int, dim: int, device: torch.device) -> dict[str, Trial]:
    """Forward and backward of anchors against a bank, and against themselves."""
    dtype = MODES[mode].dtype
    generator = torch.Generator(device).manual_seed(0)

    def vectors(rows: int) -> Tensor:
        drawn = torch.randn(rows, dim, device=device, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=1).to(dtype)

    leaf, bank = vectors(anchors).requires_grad_(), vectors(entries)
    labels = torch.arange(anchors, device=device) * 19 // max(1, anchors)
    bank_labels = torch.arange(entries, device=device) * 19 // max(1, entries)

    def run(*contrast: Tensor) -> list[Tensor]:
        loss = info_nce(leaf, labels, *contrast, backend="triton")
        (gradient,) = torch.autograd.grad(loss, leaf)
        return [loss.detach().float(), gradient.float()]

    return {"bank": lambda: run(bank, bank_labels), "itself": run}


def as_row(dim: int, best: Configurations) -> str:
    """A line of `kernels/configurations.py`."""
    return f"{dim}: C({', '.join(f'K{tuple(tile)}' for tile in best)}),"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--mode", choices=tuple(KINDS), default="bf16")
    add("--dims", nargs="+", type=int, default=[64, 128, 256, 512])
    add("--anchors", type=int, default=1024)
    add("--entries", type=int, default=190_000)
    add("--repeats", type=int, default=10)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
