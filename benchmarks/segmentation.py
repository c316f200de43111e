"""Does pixel contrast help? A small network trained in pairs, without it and with it.

    python -m benchmarks.segmentation
    python -m benchmarks.segmentation --data camvid --root FOLDER

Both networks of a pair start from the same weights and see the same batches; only the loss
differs. The result is printed whether or not contrast helps.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from benchmarks._measure.arguments import command_parser, count, positive, size_of
from benchmarks._measure.command import write_record
from benchmarks._measure.environment import describe_environment
from benchmarks._tables.pairs import make_record, pairs_table
from benchmarks._training.experiment import load_data, run_side_by_side
from benchmarks._training.maps import save_maps
from benchmarks._training.protocol import pair_table
from benchmarks._training.recipe import RECIPES, Recipe

OPTIONS = (
    ("size", size_of, "size of the images, as in 72x96"),
    ("seeds", positive, "number of pairs of runs"),
    ("steps", positive, "training steps of each run"),
    ("batch_size", positive, "images in a batch"),
    ("learning_rate", float, "initial learning rate, which decays to 0"),
    ("weight", float, "weight of the contrast; the cross entropy has 1"),
    ("temperature", float, "temperature of the contrast"),
    ("max_anchors", positive, "maximum number of anchors in a batch"),
    ("max_views", positive, "maximum number of anchors of a class in an image"),
    ("bank", count, "slots per class of both queues of the bank, 0 for no bank"),
)
NOTE = (
    "(± is the standard error of the paired differences over the seeds; the projection of the arm "
    "without contrast is never trained)"
)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and write a table, a JSON and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    environment = describe_environment()
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(options, name, None) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    recipe = dataclasses.replace(RECIPES[options.data], **changes)
    split = "tuning" if options.holdout else "val"
    if options.data == "digits" and options.root is not None:
        parser.error("--root: expected with --data camvid alone; the digits need no folder")
    try:
        data = load_data(options.data, split, recipe.size, options.root)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    folder = options.out or Path("runs") / f"segmentation-{options.data}"

    table = pair_table(options.data, split, recipe)
    runs = run_side_by_side(table.keys(), data, environment, 2, table.name_of)
    trained = {(one.key.seed, one.key.recipe.has_contrast): one for one in runs}
    pairs = {seed: (trained[seed, False].run, trained[seed, True].run) for seed in table.seeds}

    record = make_record(data, recipe, pairs, environment, time.perf_counter() - start)
    size = f"{recipe.size[0]}x{recipe.size[1]}"
    print(
        f"\n{data.name} at {size}: {len(data.train)} training images, {len(data.heldout)} held out "
        f"({data.heldout_is}), {recipe.seeds} paired seeds\n\n{pairs_table(record).aligned()}\n"
        f"\n{NOTE}\n"
    )
    write_record(folder / "result.json", record)
    plain, contrast = (100 * run["measured"]["mean_iou"] for run in pairs[0])
    title = (
        f"{data.name} at {size}, held-out images, seed 0: "
        f"mean IoU {plain:.1f} without contrast, {contrast:.1f} with it\n"
        "(each PCA has its own colors: compare them within a column only)"
    )
    networks = (trained[0, False].network, trained[0, True].network)
    save_maps(folder / "figure.png", data, *networks, title)
    seconds = time.perf_counter() - start
    print(f"{folder / 'result.json'} and figure.png written, {seconds:.0f} s in all")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("segmentation", __doc__)
    add = parser.add_argument
    add("--data", choices=sorted(RECIPES), default="digits", help="data set (default: digits)")
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, which holds train/")
    training = parser.add_argument_group("options of the training")
    for name, kind, text in OPTIONS:
        values = {data: getattr(recipe, name) for data, recipe in RECIPES.items()}
        defaults = ", ".join(
            f"{data}: {'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
            for data, value in values.items()
        )
        flag = f"--{name.replace('_', '-')}"
        training.add_argument(flag, type=kind, metavar="X", help=f"{text} ({defaults})")
    training.add_argument("--optimizer", choices=("sgd", "adamw"), help="SGD has momentum 0.9")
    holdout = "score on held-out training images; use it to choose options"
    add("--holdout", action="store_true", help=holdout)
    add("--out", type=Path, metavar="FOLDER", help="output folder (runs/segmentation-DATA)")
    threads = "threads of each arm (default: 1); the two arms of a pair run side by side"
    add("--threads", type=positive, default=1, metavar="N", help=threads)
    return parser


if __name__ == "__main__":
    main()
