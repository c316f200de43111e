"""Does pixel contrast help? A small network trained in pairs, without it and with it.

    python -m benchmarks.segmentation
    python -m benchmarks.segmentation --data camvid --root FOLDER

Both networks of a pair start from the same weights and see the same batches; only the loss
differs. The result is printed whether or not contrast helps. Each run is a line of `runs.jsonl` in
the folder of the results.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks._measure.arguments import command_parser, count, positive, size_of
from benchmarks._tables.pairs import ablation_table, classes_table
from benchmarks._training.experiment import load_data, run_side_by_side
from benchmarks._training.protocol import pair_table
from benchmarks._training.recipe import RECIPES
from benchmarks._training.runs import load_runs

OPTIONS = (
    ("size", size_of, "size of the images, as in 72x96"),
    ("seeds", positive, "number of pairs of runs"),
    ("steps", positive, "training steps of each run"),
    ("batch_size", positive, "images in a batch"),
    ("weight", float, "weight of the contrast; the cross entropy has 1"),
    ("bank", count, "slots per class of both queues of the bank, 0 for no bank"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; print two tables, and write the runs."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # One thread each: the arms go side by side, and sums depend on the number of threads.
    torch.set_num_threads(1)
    given = {name: getattr(options, name) for name, _, _ in OPTIONS}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(RECIPES[options.data], **changes)
    split = "tuning" if options.holdout else "val"
    try:
        data = load_data(options.data, split, recipe.size, options.root)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    folder = options.out or Path("runs") / f"segmentation-{options.data}"
    path = folder / "runs.jsonl"
    path.unlink(missing_ok=True)

    table = pair_table(options.data, split, recipe, recipe.seeds)
    run_side_by_side(table.keys(), data, path, 2, table.name_of)
    runs = load_runs(path)
    size = f"{recipe.size[0]}x{recipe.size[1]}"
    print(
        f"\n{options.data} at {size}: {len(data.train)} training images, {len(data.heldout)} held "
        f"out ({split}); ± is the standard error of the paired differences\n\n"
        f"{ablation_table(table, runs).aligned()}\n\n{classes_table(table, runs).aligned()}\n"
    )
    print(f"{path} written")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("segmentation", __doc__)
    add = parser.add_argument
    add("--data", choices=sorted(RECIPES), default="digits", help="data set (default: digits)")
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, which holds train/")
    for name, kind, text in OPTIONS:
        values = {data: getattr(recipe, name) for data, recipe in RECIPES.items()}
        defaults = ", ".join(f"{data}: {value}" for data, value in values.items())
        add(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=f"{text} ({defaults})")
    holdout = "score on held-out training images; use it to choose options"
    add("--holdout", action="store_true", help=holdout)
    add("--out", type=Path, metavar="FOLDER", help="output folder (runs/segmentation-DATA)")
    return parser


if __name__ == "__main__":
    main()
