"""Pictures of what contrast does, from a pair of real runs.

    python -m benchmarks.figures
    python -m benchmarks.figures --data camvid --root FOLDER

Both networks of the pair start from the same weights and see the same batches. Written are, under
OUT: what both predict and their embedding maps as colours (maps), pixels by class under PCA and
t-SNE (scatter), which pixels become anchors (anchors), how alike the classes are (similarity), how
the bank fills (bank), and the figures behind them as a JSON. The pictures of CamVid that show its
photographs are for your eyes: they may not be handed on, and are not in the docs.
"""

import argparse
import copy
import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks._measure.arguments import picture_parser, positive
from benchmarks._plots.anchors import save_anchors
from benchmarks._plots.bank import Occupancy, save_occupancy
from benchmarks._plots.classes import class_similarity, save_class_similarity
from benchmarks._plots.maps import save_figure
from benchmarks._plots.scatter import save_scatter
from benchmarks._tables.pairs import without_nan
from benchmarks._training.data import SegmentationData
from benchmarks._training.experiment import load_data
from benchmarks._training.measures import measure
from benchmarks._training.pairs import Networks
from benchmarks._training.protocol import BANK, SGD
from benchmarks._training.recipe import RECIPES, Recipe
from benchmarks._training.training import initial_network, train_arm
from benchmarks.environment import describe_environment
from benchmarks.script import write_record

BASES = {
    "digits": dataclasses.replace(RECIPES["digits"], **BANK),
    "camvid": dataclasses.replace(SGD, **BANK),
}


def main(arguments: list[str] | None = None) -> None:
    """Train a pair and draw it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = BASES[options.data]
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, steps=options.steps)
    try:
        data = load_data(options.data, "val", recipe.size, options.root)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    environment = describe_environment()
    networks, occupancy = _train(data, recipe, options.seed)
    scores = {arm: measure(getattr(networks, arm), data).mean_iou for arm in ("plain", "contrast")}
    matrices = {arm: class_similarity(getattr(networks, arm), data) for arm in scores}

    out, name = options.out, options.data
    title = (
        f"{data.name}, held-out images, seed {options.seed}: mean IoU "
        f"{100 * scores['plain']:.1f} without contrast, {100 * scores['contrast']:.1f} with it"
    )
    save_figure(out / f"{name}-maps.png", data, networks, title)
    save_anchors(out / f"{name}-anchors.png", data, networks.contrast, recipe, options.seed)
    save_scatter(out / f"{name}-scatter.png", data, networks, options.seed)
    save_class_similarity(out / f"{name}-similarity.png", data, matrices)
    save_occupancy(out / f"{name}-bank.png", data, occupancy)
    record = {
        "environment": environment,
        "recipe": dataclasses.asdict(recipe),
        "seed": options.seed,
        "mean_iou": scores,
        "class_names": data.class_names,
        "class_similarity": {arm: matrix.tolist() for arm, matrix in matrices.items()},
        "occupancy": dataclasses.asdict(occupancy),
    }
    cleaned = {key: without_nan(value) for key, value in record.items()}
    write_record(out / f"{name}-figures.json", cleaned)
    print(f"{title}\n{out / name}-*.png and {name}-figures.json written")


def _train(data: SegmentationData, recipe: Recipe, seed: int) -> tuple[Networks, Occupancy]:
    plain = initial_network(data, recipe, seed)
    contrast = copy.deepcopy(plain)
    occupancy = Occupancy()
    with tqdm(total=2 * recipe.steps, unit="step", leave=False, disable=None) as bar:
        train_arm(plain, data, recipe, seed, False, bar.update)
        train_arm(contrast, data, recipe, seed, True, bar.update, occupancy.observe)
    return Networks(plain, contrast), occupancy


def _parser() -> argparse.ArgumentParser:
    parser = picture_parser("figures", __doc__)
    add = parser.add_argument
    add("--data", choices=sorted(BASES), default="digits", help="which images (default: digits)")
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, the one that holds train/")
    add("--steps", type=positive, metavar="N", help="training steps, fewer for a rehearsal")
    add("--seed", type=int, default=100, metavar="N")
    return parser


if __name__ == "__main__":
    main()
