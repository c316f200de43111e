"""Does pixel contrast help? A small network trained in pairs, without it and with it.

    python -m benchmarks.segmentation
    python -m benchmarks.segmentation --data camvid --root FOLDER

Both networks of a pair start from the same weights and see the same batches; only the loss
differs. Printed is what was measured, also where contrast does not help.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from benchmarks._measure.arguments import count, positive, size_of
from benchmarks._plots.maps import save_figure
from benchmarks._tables.pairs import as_record, format_table
from benchmarks._training.camvid import load_camvid
from benchmarks._training.data import SegmentationData
from benchmarks._training.pairs import Networks, Pair, run_pairs
from benchmarks._training.recipe import RECIPES, Recipe
from benchmarks._training.scenes import load_scenes
from benchmarks.environment import describe_environment
from benchmarks.script import write_record


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark as the command line says: a table, a JSON and a figure."""
    parser = _parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    environment = describe_environment()
    recipe = _recipe(options)
    try:
        data = _load(options, recipe)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    folder = options.out or Path("runs") / f"segmentation-{options.data}"

    pairs: list[Pair] = []
    shown: Networks | None = None
    for pair, networks in run_pairs(data, recipe):
        pairs.append(pair)
        shown = shown or networks
    print(f"\n{format_table(data, recipe, pairs)}\n")

    record = as_record(data, recipe, pairs, environment, time.perf_counter() - start)
    write_record(folder / "result.json", record)
    if shown is not None:
        save_figure(folder / "figure.png", data, shown, _title(data, recipe, pairs[0]))
    seconds = time.perf_counter() - start
    print(f"{folder / 'result.json'} and figure.png written, {seconds:.0f} s in all")


def _load(options: argparse.Namespace, recipe: Recipe) -> SegmentationData:
    if options.data == "camvid":
        if options.root is None:
            raise ValueError("--data camvid needs --root FOLDER, the folder that holds train/")
        return load_camvid(options.root, recipe.size, options.holdout)
    if options.root is not None:
        raise ValueError("--root is for --data camvid: the digits come with scikit-learn")
    return load_scenes(recipe.size, options.holdout)


def _recipe(options: argparse.Namespace) -> Recipe:
    """The data set's recipe, with what the command line says otherwise."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    given = {name: getattr(options, name, None) for name in names}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[options.data], **changes)


def _title(data: SegmentationData, recipe: Recipe, pair: Pair) -> str:
    plain, contrast = pair.plain.measured.mean_iou, pair.contrast.measured.mean_iou
    return (
        f"{data.name} at {recipe.size[0]}x{recipe.size[1]}, held-out images, seed {pair.seed}: "
        f"mean IoU {100 * plain:.1f} without contrast, {100 * contrast:.1f} with it\n"
        "(each PCA has its own colours: they compare within a column, not across)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.segmentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=sorted(RECIPES), default="digits", help="which images (default: digits)")
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, the one that holds train/")
    recipe = parser.add_argument_group("options of the training")
    for name, kind, text in (
        ("size", size_of, "size of the images, as in 72x96"),
        ("seeds", positive, "how many pairs of runs"),
        ("steps", positive, "training steps of each run"),
        ("batch_size", positive, "images in a batch"),
        ("learning_rate", float, "at the start, from where it decays to 0"),
        ("weight", float, "of the contrast, next to the cross entropy's 1"),
        ("temperature", float, "of the contrast"),
        ("max_anchors", positive, "anchors in a batch, at most"),
        ("max_views", positive, "anchors of a class in an image, at most"),
        ("bank", count, "slots per class of both queues of the bank, 0 for no bank"),
    ):
        defaults = ", ".join(f"{data}: {_shown(name, data)}" for data in RECIPES)
        flag = f"--{name.replace('_', '-')}"
        recipe.add_argument(flag, type=kind, metavar="X", help=f"{text} ({defaults})")
    recipe.add_argument("--optimizer", choices=("sgd", "adamw"), help="SGD has momentum 0.9")
    add(
        "--holdout",
        action="store_true",
        help="score on held-out training images, as is right for choosing options",
    )
    add("--out", type=Path, metavar="FOLDER", help="for JSON and figure (runs/segmentation-DATA)")
    add(
        "--threads",
        type=positive,
        default=1,
        metavar="N",
        help="threads of each arm (default: 1); the two arms of a pair run side by side",
    )
    return parser


def _shown(name: str, data: str) -> str:
    value = getattr(RECIPES[data], name)
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
