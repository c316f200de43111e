"""Draw the pictures of the documentation from real runs.

    python -m benchmarks.figures
    python -m benchmarks.figures --data camvid --root FOLDER
    python -m benchmarks.figures method
    python -m benchmarks.figures sphere

`pair` (default) trains a pair of networks with the same initial weights and batches. It draws their
predictions and embedding maps (maps), pixels by class under PCA and t-SNE (scatter), the pixels
that become anchors (anchors), the similarity of the classes (similarity), how the bank fills
(bank), and writes the figures behind them as a JSON. The licence of CamVid does not allow to
redistribute pictures that show its photographs; the documentation has none of them. `method` draws
the pictures of docs/method.md, `sphere` that of the README.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from benchmarks._measure.arguments import command_parser, positive
from benchmarks._measure.command import write_record
from benchmarks._measure.environment import describe_environment
from benchmarks._plots.classes import Occupancy, save_occupancy, save_scatter, save_similarity
from benchmarks._plots.method import draw_method
from benchmarks._plots.scene import save_anchors, save_maps
from benchmarks._plots.sphere import draw_sphere
from benchmarks._training.data import SegmentationData
from benchmarks._training.experiment import load_data, run_side_by_side
from benchmarks._training.measures import class_similarity
from benchmarks._training.protocol import BANK, SGD, pair_table
from benchmarks._training.recipe import RECIPES, Recipe
from benchmarks._training.runs import without_nan

BASES = {
    "digits": dataclasses.replace(RECIPES["digits"], **BANK),
    "camvid": dataclasses.replace(SGD, **BANK),
}


def main(arguments: list[str] | None = None) -> None:
    """Draw the requested pictures."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # One thread: sums depend on the number of threads.
    torch.set_num_threads(1)
    recipe = BASES["digits" if options.pictures == "method" else options.data]
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    if options.pictures == "sphere":
        draw_sphere(options.out)
    elif options.pictures == "method":
        draw_method(options.out, recipe)
    else:
        try:
            data = load_data(options.data, "val", recipe.size, options.root)
        except (OSError, ValueError) as problem:
            parser.error(str(problem))
        draw_pair(options.out, data, recipe, options.seed)


def draw_pair(out: Path, data: SegmentationData, recipe: Recipe, seed: int) -> None:
    """Train a pair of networks, and write its pictures and their record to a folder."""
    environment = describe_environment()
    table, occupancy = pair_table(data.name, "val", recipe), Occupancy()
    keys = [table.key(row, seed) for row in table.rows]
    # One run at a time: `occupancy` observes the one that has contrast.
    runs = run_side_by_side(keys, data, environment, 1, table.name_of, occupancy.observe)
    plain, contrast = sorted(runs, key=lambda one: one.key.recipe.has_contrast)
    networks = (plain.network, contrast.network)
    scores = [one.run["measured"]["mean_iou"] for one in (plain, contrast)]
    matrices = [class_similarity(network, data) for network in networks]

    title = (
        f"{data.name}, held-out images, seed {seed}: mean IoU "
        f"{100 * scores[0]:.1f} without contrast, {100 * scores[1]:.1f} with it"
    )
    name = data.name
    save_maps(out / f"{name}-maps.png", data, networks, title)
    save_anchors(out / f"{name}-anchors.png", data, contrast.network, recipe, seed)
    save_scatter(out / f"{name}-scatter.png", data, networks, seed)
    save_similarity(out / f"{name}-similarity.png", data, *matrices)
    save_occupancy(out / f"{name}-bank.png", data, occupancy)
    arms = ("plain", "contrast")
    record = {
        "environment": environment,
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "mean_iou": dict(zip(arms, scores, strict=True)),
        "class_names": data.class_names,
        "class_similarity": {arm: m.tolist() for arm, m in zip(arms, matrices, strict=True)},
        "occupancy": vars(occupancy),
    }
    write_record(out / f"{name}-figures.json", without_nan(record))
    print(f"{title}\n{out / name}-*.png and {name}-figures.json written")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("figures", __doc__)
    add = parser.add_argument
    add("pictures", nargs="?", choices=("pair", "method", "sphere"), default="pair")
    add("--data", choices=sorted(BASES), default="digits", help="data set (default: digits)")
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, which holds train/")
    add("--steps", type=positive, metavar="N", help="training steps, fewer for a rehearsal")
    add("--seed", type=int, default=100, metavar="N")
    add("--out", type=Path, default=Path("runs") / "figures", metavar="FOLDER")
    return parser


if __name__ == "__main__":
    main()
