"""What a training step pays for the contrast, beside the authors' step, and where it goes.

    python -m benchmarks.step
    python -m benchmarks.step --shapes coco-stuff --cases bank --repeats 3
    python -m benchmarks.step --device cuda --out FOLDER --budget 60
    python -m benchmarks.step --device cuda --out FOLDER --profile

A step starts from what the network gives (unit embeddings, logits) and the labels, and ends with
the gradient of the embeddings and the batch in the bank: labels resized, predictions, sampling,
loss, bank update, backward. "loss" is the loss alone, forward and backward, on the anchors and
entries of that step; "unmined" is the step without mining. Steps are timed in turn.

On the CPU everything is float32, logits have the size of the embedding as the authors' code
requires, and memory is measured in a process of its own. On CUDA our step runs under autocast to
bfloat16, with a bfloat16 bank and logits of the size of the image; "replayed" is the same from a
CUDA graph. The authors' step is in float32 as released. `--profile` measures no time: it counts
waits of the host and launches, times each kernel, and measures memory.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from functools import partial

import torch

from benchmarks._measure.arguments import add_device_options, add_run_options, command_parser
from benchmarks._measure.command import REFUSED, has_device, set_threads
from benchmarks._measure.device import peak_memory, profile_run
from benchmarks._measure.session import Row, Session
from benchmarks._measure.tables import table
from benchmarks._measure.timers import CPU, NO_TIME, Run, attempt, measure
from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.steps import CASES, StepCase

REFERENCES = ("step", "loss")
CASE_SECONDS = 12.0
"""What a case is expected to take at most on CUDA, kernels being compiled."""


def main(arguments: list[str] | None = None) -> int:
    """Measure the steps; return the exit status."""
    options = _parser().parse_args(arguments)
    set_threads(options.threads)
    if not options.rehearse and not has_device(options.device):
        return REFUSED
    session = Session(options, arguments is None, "launches" if options.profile else "step")
    shapes = options.shapes or (("small",) if options.rehearse else STEP_SHAPES)
    cases = options.cases or CASES
    steps: list[Row] = []
    session.record["steps"] = steps
    for name, case in itertools.product(shapes, cases):
        row: Row = {"name": name, "case": case, "shape": asdict(SHAPES[name])}
        row |= {"note": NO_TIME, "measured": {}}
        steps.append(row)
        expected = CASE_SECONDS if session.device.type == "cuda" else 0.0
        status = session.fill(row, partial(_measure, row, options, session), expected)
        print(table(f"{name}, {case}", row), flush=True)
        if status != 0:
            return status
    return 0


def _measure(row: Row, options: argparse.Namespace, session: Session) -> None:
    """Fill in the row of one case."""
    torch.manual_seed(0)
    device, measured = session.device, row["measured"]
    case = StepCase(SHAPES[row["name"]], row["case"], device, as_on_gpu=session.as_on_gpu)
    if options.profile:
        for way in case.ways():
            if way != "replayed" and session.has_time():
                found = attempt(partial(profile_run, case.way(way), device), device)
                measured[way] = {"status": found} if isinstance(found, str) else found
                session.save()
        return
    runs = {way: case.way(way) for way in case.ways()}
    ours = {way: run for way, run in runs.items() if not way.startswith("authors")}
    # On a GPU ours first: a process that is stopped later has them.
    for chosen in (ours, runs) if session.as_on_gpu else (runs,):
        measure(chosen, options.repeats, device,
                into=measured, references=REFERENCES, deadline=session.deadline)  # fmt: skip
        session.save()
    # The processes that measure memory have banks and queues of their own.
    ours.clear()
    runs.clear()
    for way, one in measured.items() if not session.as_on_gpu else ():
        given = (runs_to_weigh, row["name"], row["case"], way)
        one["extra_mb"] = peak_memory(*given) if options.memory else None


def runs_to_weigh(shape: str, case: str, way: str) -> tuple[Run, Run]:
    """Return an implementation on a tiny batch, and on that of a case."""
    small, run = (StepCase(SHAPES[name], case, CPU).way(way) for name in ("small", shape))
    return small, run


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("step", __doc__)
    add = parser.add_argument
    add_run_options(parser, repeats=5)
    add_device_options(parser)
    names = f"out of {', '.join(SHAPES)}"
    add("--shapes", nargs="+", choices=list(SHAPES), metavar="NAME", help=names)
    add("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"out of {', '.join(CASES)}")
    add("--profile", action="store_true", help="count launches and waits; measure no time")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
