"""Draw what contrast changes in a row that gains and in one that loses, for docs/effects.md.

    python -m benchmarks.effects --out docs/figures
    python -m benchmarks.effects --root FOLDER --out docs/figures

The first command draws the differences of the committed runs. With FOLDER, CamVid's, the first pair
of each row is trained again, and labels, predictions and features of held-out images are drawn too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks._measure.arguments import command_parser
from benchmarks._tables.pairs import class_differences, runs_of
from benchmarks._training.data import IGNORE_INDEX, Split
from benchmarks._training.experiment import CLASSES, load_data, prepare
from benchmarks._training.network import SegmentationNetwork, full_resolution
from benchmarks._training.protocol import TABLES
from benchmarks._training.regimes import EXPLAINED
from benchmarks._training.runs import load_runs
from benchmarks._training.training import train_arm
from benchmarks.pages import runs_file

SHOWN = 3
ARMS = ("cross entropy", "with contrast")


def main(arguments: list[str] | None = None) -> None:
    """Write the pictures to a folder."""
    parser = command_parser("effects", __doc__)
    add = parser.add_argument
    add("--root", type=Path, metavar="FOLDER", help="CamVid's folder, which holds train/")
    add("--out", type=Path, default=Path("runs") / "effects", metavar="FOLDER")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    save_differences(options.out / "effects.png")
    if options.root is not None:
        for name in EXPLAINED:
            save_maps(options.out / f"effect-{name}.png", name, options.root)
    print(f"pictures written to {options.out}")


def save_differences(path: Path) -> None:
    """Draw the change of each class's IoU, and the gradient ratio in the course of training."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(2, 1))
    for index, (name, (table_name, row)) in enumerate(EXPLAINED.items()):
        table, runs = TABLES[table_name], load_runs(runs_file(table_name))
        found = class_differences(table, row, runs)
        places = torch.arange(len(found)) + 0.4 * (index - 0.5)
        heights = [one.difference for one in found]
        errors = [one.standard_error for one in found]
        label = f"{name}: {table.title}, {row}"
        bars.bar(places.tolist(), heights, 0.4, yerr=errors, label=label, error_kw={"lw": 0.8})
        ratios = torch.tensor([run["ratios"] for run in runs_of(table, row, runs).values()])
        parts = torch.arange(1, ratios.shape[1] + 1) / ratios.shape[1]
        lines.plot(parts.tolist(), ratios.nanmedian(0).values.tolist(), label=name)
    bars.set_xticks(range(len(CLASSES["camvid"])), CLASSES["camvid"], rotation=60, fontsize=8)
    bars.axhline(0, color="gray", lw=0.8)
    bars.set_ylabel("difference of the IoU, points", fontsize=8)
    bars.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1))
    lines.set(yscale="log")
    lines.set_xlabel("part of the run", fontsize=8)
    lines.set_ylabel("gradient ratio", fontsize=8)
    figure.savefig(path, dpi=120)


def save_maps(path: Path, name: str, root: Path) -> None:
    """Train a pair, and draw labels, predictions and features of some held-out images."""
    table_name, row = EXPLAINED[name]
    table = TABLES[table_name]
    seed = table.seeds[0]
    keys = [table.key(one, seed) for one in (next(iter(table.rows)), row)]
    loaded = load_data(table.data, table.split, table.base.size, root, table.base.without)
    step = len(loaded.heldout) // SHOWN
    some = Split(loaded.heldout.images[::step][:SHOWN], loaded.heldout.labels[::step][:SHOWN])
    columns: dict[str, list[Any]] = {"labels": [colors_of(one) for one in some.labels]}
    for arm, key in zip(ARMS, keys, strict=True):
        seen, network = prepare(key, loaded)
        train_arm(network, seen, key.recipe, seed)
        predicted, colors = maps_of(network, some)
        columns[f"{arm}: predicted"] = [colors_of(one) for one in predicted]
        columns[f"{arm}: features"] = [one.numpy() for one in colors]
    figure = Figure(figsize=(11, 1.75 * SHOWN), layout="constrained")
    axes = figure.subplots(SHOWN, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        for line, picture in enumerate(pictures):
            axes[line, column].imshow(picture)
            axes[line, column].axis("off")
    figure.savefig(path, dpi=100)


@torch.no_grad()
def maps_of(network: SegmentationNetwork, split: Split) -> tuple[Tensor, Tensor]:
    """Return predicted classes (N, H, W) and features as colors (N, H, W, 3)."""
    outputs = network(split.network_input(slice(None)))
    predicted = full_resolution(outputs.logits, split.labels).argmax(1)
    vectors = F.normalize(outputs.features, dim=1).movedim(1, -1)
    flat = vectors.flatten(0, -2)
    centered = flat - flat.mean(0)
    # The three principal components, each from 0 to 1 between its first and last percent.
    main = centered @ torch.linalg.svd(centered, full_matrices=False).Vh[:3].T
    low, high = main.quantile(0.01, 0), main.quantile(0.99, 0)
    colors = ((main - low) / (high - low)).clamp(0, 1)
    return predicted, colors.view(*vectors.shape[:-1], 3)


def colors_of(labels: Tensor) -> Any:
    """Return a color for each label, and white for void pixels."""
    palette = torch.tensor(colormaps["tab20"](range(20)))[:, :3]
    colors = palette[labels.long() % 20]
    return torch.where((labels == IGNORE_INDEX)[..., None], 1.0, colors).numpy()


if __name__ == "__main__":
    main()
