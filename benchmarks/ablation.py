"""Does pixel contrast help, how much, and which of its options? Tables of paired runs.

    python -m benchmarks.ablation --root FOLDER
    python -m benchmarks.ablation --root FOLDER --table temperature weight
    python -m benchmarks.ablation --root FOLDER --table gpu --device cuda

FOLDER is CamVid's, or any folder of its layout: train/, trainannot/, val/, valannot/. All runs of a
seed start from the same weights and see the same batches. Every finished run becomes a line of
OUT/ablation.jsonl (those of the embedding tables of OUT/embedding.jsonl) and is not run again, so
the command can be stopped and restarted at any time. With `--out benchmarks/results` it continues
from the runs of the documentation.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks._measure.arguments import command_parser, positive, size_of
from benchmarks._tables.pairs import ablation_table
from benchmarks._training.experiment import load_data, run_side_by_side
from benchmarks._training.protocol import TABLES
from benchmarks._training.runs import load_runs
from benchmarks._training.table import Table

COMMITTED = Path(__file__).parent / "results" / "ablation.jsonl"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing in the requested tables, and print them."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # One thread each: runs go side by side, and sums depend on the number of threads.
    torch.set_num_threads(1)
    changes = {
        name: value for name in ("steps", "size", "batch_size") if (value := getattr(options, name))
    }
    for name in options.table:
        table = TABLES[name]
        base, seeds = dataclasses.replace(table.base, **changes), table.seeds[: options.seeds]
        table = dataclasses.replace(table, base=base, seeds=seeds)
        path = options.out / table.file
        try:
            _run_missing(table, path, options)
        except (OSError, ValueError) as problem:
            parser.error(str(problem))
        runs = load_runs(path)
        print(f"\n{table.title}\n\n{ablation_table(table, runs).aligned()}\n")


def _run_missing(table: Table, path: Path, options: argparse.Namespace) -> None:
    done = load_runs(path)
    missing = [key for key in dict.fromkeys(table.keys()) if key not in done]
    if not missing:
        return
    base = table.base
    data = load_data(table.data, table.split, base.size, options.root, base.without)
    data = data.to(torch.device(options.device))
    run_side_by_side(missing, data, path, options.workers, table.name_of)


def _parser() -> argparse.ArgumentParser:
    tables = [
        f"  {name:<12}{len(set(table.keys())):>4} runs  {table.title}"
        for name, table in TABLES.items()
    ]
    parser = command_parser("ablation", __doc__, epilog="\n".join(["tables:", *tables]))
    add = parser.add_argument
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, which holds train/")
    add("--table", nargs="+", choices=list(TABLES), default=["small"], metavar="NAME")
    add("--out", type=Path, default=Path("runs") / "ablation", metavar="FOLDER")
    workers = "runs side by side, one thread each (default: 2; use 1 on a GPU)"
    add("--workers", type=positive, default=2, metavar="N", help=workers)
    add("--device", default="cpu", metavar="NAME", help="cpu or cuda")
    smaller = parser.add_argument_group("a smaller table than that of the documentation")
    smaller.add_argument("--seeds", type=positive, metavar="N", help="the first N of its seeds")
    smaller.add_argument("--steps", type=positive, metavar="N", help="training steps of each run")
    smaller.add_argument("--size", type=size_of, metavar="HxW", help="size of the images")
    smaller.add_argument("--batch-size", type=positive, metavar="N", help="images in a batch")
    return parser


if __name__ == "__main__":
    main()
