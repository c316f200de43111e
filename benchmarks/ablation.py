"""Does pixel contrast help, by how much, and which of its options? Tables of paired runs.

    python -m benchmarks.ablation --root FOLDER
    python -m benchmarks.ablation --root FOLDER --table temperature weight
    python -m benchmarks.ablation --root FOLDER --table gpu --device cuda

FOLDER is CamVid's, or any of its layout: train/, trainannot/, val/, valannot/. All runs of a seed
start from the same weights and see the same batches. Every run that ends becomes a line of
OUT/ablation.jsonl, and what is there is not run again: stop it when you like, and start it again.
With `--out benchmarks/results` the runs of the docs are there already.
"""

import argparse
import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from benchmarks._measure.arguments import positive, size_of
from benchmarks._plots.ablation import save_plot
from benchmarks._tables.ablation import Runs, format_lines
from benchmarks._training.experiment import load_data, run_experiment
from benchmarks._training.protocol import TABLES, Table
from benchmarks._training.runs import Key, append_run, load_runs
from benchmarks.environment import describe_environment

FILE = "ablation.jsonl"
COMMITTED = Path(__file__).parent / "results" / FILE
CORES = 2
"""What the times of `--help` are for, and as many runs go side by side."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing of the tables that are asked for; print and draw them."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # A thread each: runs go side by side, and a sum depends on the number of threads.
    torch.set_num_threads(1)
    path = options.out / FILE
    for name in options.table:
        table = _changed(TABLES[name], options)
        try:
            _run_missing(table, path, options)
        except (OSError, ValueError) as problem:
            parser.error(str(problem))
        runs = load_runs(path)
        print(f"\n{format_lines(table, runs)}\n")
        save_plot(options.out / f"ablation-{name}.png", table, runs)
        print(f"{path} and ablation-{name}.png written")


def _changed(table: Table, options: argparse.Namespace) -> Table:
    """The table as the command line wants it: smaller, for a rehearsal."""
    changes = {
        name: value for name in ("steps", "size", "batch_size") if (value := getattr(options, name))
    }
    return dataclasses.replace(
        table,
        base=dataclasses.replace(table.base, **changes),
        seeds=table.seeds[: options.seeds],
    )


def _run_missing(table: Table, path: Path, options: argparse.Namespace) -> None:
    done = load_runs(path)
    missing = [key for key in dict.fromkeys(table.keys()) if key not in done]
    if not missing:
        return
    environment = describe_environment()
    device = torch.device(options.device)
    if device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(device)
    data = load_data(table.data, table.split, table.base.size, options.root).to(device)
    writing, stopped = threading.Lock(), threading.Event()

    def run(key: Key, bar: tqdm) -> None:
        def advance() -> None:
            if stopped.is_set():
                raise RuntimeError("stopped")
            bar.update()

        ended = run_experiment(key, data, environment, advance)
        with writing:
            append_run(path, ended)
        bar.write(
            f"seed {key.seed}  {_name(table, key)}  mean IoU {100 * ended.measured.mean_iou:.2f}"
            f"  {ended.seconds:.0f} s"
        )

    total = sum(key.recipe.steps for key in missing)
    # disable=None: no bar where standard error is no terminal.
    with (
        tqdm(total=total, unit="step", leave=False, disable=None) as bar,
        ThreadPoolExecutor(options.workers) as workers,
    ):
        waiting = [workers.submit(run, key, bar) for key in missing]
        try:
            for one in waiting:
                one.result()
        except BaseException:
            # Nobody wants to wait for the runs that go on beside the one that failed.
            stopped.set()
            workers.shutdown(wait=False, cancel_futures=True)
            raise


def _name(table: Table, key: Key) -> str:
    return next(row.name for row in table.rows if table.key(row, key.seed) == key)


def _how_long(runs: Runs) -> str:
    """What every table takes, from the runs of the docs."""
    lines = [
        f"tables, and what each takes on {CORES} cores, from the seconds that the committed runs",
        "took, a thread each; rows that tables share are run once:",
    ]
    for name, table in TABLES.items():
        keys = set(table.keys())
        minutes = sum(seconds_of(key, runs) for key in keys) / 60 / CORES
        taken = "not measured" if math.isnan(minutes) else f"{minutes:.0f} minutes"
        lines.append(f"  {name:<12}{len(keys):>4} runs  {taken:<16}{table.title}")
    return "\n".join(lines)


def seconds_of(key: Key, runs: Runs) -> float:
    """What a run takes: the median step of runs as large, with contrast or without."""
    alike = [
        run.seconds / run.key.recipe.steps
        for run in runs.values()
        if (run.key.recipe.size, run.key.recipe.network, run.key.recipe.has_contrast)
        == (key.recipe.size, key.recipe.network, key.recipe.has_contrast)
    ]
    return key.recipe.steps * median(alike) if alike else math.nan


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        epilog=_how_long(load_runs(COMMITTED)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, the one that holds train/")
    add("--table", nargs="+", choices=list(TABLES), default=["small"], metavar="NAME")
    add("--out", type=Path, default=Path("runs") / "ablation", metavar="FOLDER")
    add(
        "--workers",
        type=positive,
        default=CORES,
        metavar="N",
        help=f"runs side by side, a thread each (default: {CORES}; on a GPU take 1)",
    )
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda")
    smaller = parser.add_argument_group("a smaller table than the one of the docs")
    smaller.add_argument("--seeds", type=positive, metavar="N", help="the first N of its seeds")
    smaller.add_argument("--steps", type=positive, metavar="N", help="training steps of each run")
    smaller.add_argument("--size", type=size_of, metavar="HxW", help="size of the images")
    smaller.add_argument("--batch-size", type=positive, metavar="N", help="images in a batch")
    return parser


if __name__ == "__main__":
    main()
