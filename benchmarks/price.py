"""What contrast adds to a training step: time and memory of a step without it and with it.

    python -m benchmarks.price
    python -m benchmarks.price --networks small --repeats 30

The head projects the sampled pixels (`projection=` of the loss) or, where that is said, every pixel
of the map. A step includes the network forward and backward, the losses, the optimizer and the
bank. The implementations are timed in turn within one run. Memory is what one step needs beyond the
network, the images and the bank, in a process of its own. Inference needs neither the loss nor the
projection head and is not measured.
"""

import argparse
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks._measure.arguments import add_run_options, command_parser, positive, size_of
from benchmarks._measure.command import set_threads, write_record
from benchmarks._measure.device import measured_peak, peak_memory
from benchmarks._measure.environment import look_at_machine
from benchmarks._measure.timers import CPU, measure
from benchmarks._tables.text import TextTable
from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.protocol import LARGE
from benchmarks._training.recipe import BANK, SGD, Recipe
from benchmarks._training.regimes import TUNED
from benchmarks._training.training import Arm
from benchmarks._ways.batches import BatchShape, draw_patches, fill_bank

Row = dict[str, Any]

REFERENCE = "cross entropy"
BATCH: dict[str, Any] = {"sources": ("batch",), "bank": 0}
BANKS: dict[str, Any] = {"sources": None}
SAMPLES: dict[str, Any] = {"projected": "samples", "pixels_per_region": 128}
WAYS: dict[str, dict[str, Any]] = {
    REFERENCE: {"sources": (), "bank": 0},
    "the batch": BATCH | SAMPLES,
    "both banks": BANKS | SAMPLES,
    "both banks, mined": BANKS | SAMPLES | {"negatives": "semi-hard"},
    "the batch, by map": BATCH,
    "both banks, by map": BANKS,
}
# The number of anchors is that of the sampler without options.
_LARGE = replace(LARGE, max_anchors=1024, max_views=100, bank=500, pixels_per_image=10)
BASES = {
    "small": replace(SGD, **BANK),
    "large": _LARGE,
    "wide": replace(_LARGE, network="wide", batch_size=4),
    "lite0": replace(TUNED, **BANK),
}
NUM_CLASSES = 11
CLASSES_OF_IMAGE = (6, 10)


class Step:
    """A training step on one random batch, with a full bank if the recipe has one."""

    def __init__(self, recipe: Recipe, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        network = SegmentationNetwork(recipe, NUM_CLASSES).to(device)
        self.arm = Arm(network, NUM_CLASSES, recipe, seed=0)
        height, width = recipe.size
        shape = BatchShape(
            images=recipe.batch_size,
            dim=recipe.dim,
            height=height // 2,
            width=width // 2,
            stride=2,
            num_classes=NUM_CLASSES,
            classes_of_image=CLASSES_OF_IMAGE,
            slots=recipe.bank,
        )
        labels, _ = draw_patches(shape, torch.Generator().manual_seed(0))
        self.labels: Tensor = labels.masked_fill(labels < 0, IGNORE_INDEX).to(device)
        images = torch.randn(recipe.batch_size, 3, *self.labels.shape[-2:])
        self.images = images.to(device, memory_format=torch.channels_last)
        if self.arm.criterion is not None and self.arm.criterion.bank is not None:
            fill_bank(self.arm.criterion.bank, shape)

    def __call__(self) -> None:
        """Take one step."""
        self.arm.descend(self.arm.losses(self.images, self.labels, step=0).total(), step=0)


def main(arguments: list[str] | None = None) -> None:
    """Measure a step of every implementation; print a table and write a JSON."""
    parser = command_parser("price", __doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(BASES), default=list(BASES), metavar="NAME")
    add("--size", type=size_of, metavar="HxW", help="size of the images")
    add("--batch-size", type=positive, metavar="N", help="images in a batch")
    add("--device", type=torch.device, default=CPU, help="cpu or cuda")
    add_run_options(parser, repeats=9)
    options = parser.parse_args(arguments)
    set_threads(options.threads)
    environment = look_at_machine()
    rows = [_measure(name, options) for name in tqdm(options.networks, leave=False, disable=None)]
    print(price_table(rows).aligned())
    if options.out is not None:
        write_record(options.out / "price.json", {"environment": environment, "rows": rows})
        print(f"{options.out / 'price.json'} written")


def price_table(rows: list[Row]) -> TextTable:
    """Tabulate time and memory of a step, and their ratios to cross entropy alone."""
    cells: list[list[str]] = []
    for row in rows:
        height, width = row["recipe"]["size"]
        title = (
            f"{row['network']}, {row['parameters'] / 1e6:.1f} M parameters, "
            f"{row['recipe']['batch_size']} images of {height}×{width}"
        )
        first = row["measured"][REFERENCE]
        for way, one in row["measured"].items():
            memory, ratio = one["extra_mb"], one["seconds"] / first["seconds"]
            weighed = ["", ""]
            if memory is not None:
                weighed = [f"{memory:.0f}", f"{memory / first['extra_mb']:.2f}"]
            cells.append([title, way, f"{1000 * one['seconds']:.0f}", f"{ratio:.2f}", *weighed])
            title = ""
    return TextTable(("", "way", "ms a step", "ratio", "extra MB", "ratio"), cells)


def _measure(network: str, options: argparse.Namespace) -> Row:
    given = {name: getattr(options, name) for name in ("size", "batch_size")}
    changes = {name: value for name, value in given.items() if value is not None}
    recipes = {way: replace(BASES[network], **WAYS[way], **changes) for way in WAYS}
    device = options.device
    steps = {way: Step(recipe, device) for way, recipe in recipes.items()}
    measured = measure(steps, options.repeats, device, references=(REFERENCE,), strict=True)
    parameters = sum(weight.numel() for weight in steps[REFERENCE].arm.network.parameters())
    if device.type == "cuda":
        for way, step in steps.items():
            measured[way]["extra_mb"] = measured_peak(step, device) if options.memory else None
    steps.clear()
    for way, one in measured.items():
        if device.type != "cuda":
            one["extra_mb"] = peak_memory(runs_to_weigh, recipes[way]) if options.memory else None
    recipe = asdict(recipes["both banks"])
    return {"network": network, "parameters": parameters, "recipe": recipe, "measured": measured}


def runs_to_weigh(recipe: Recipe) -> tuple[Step, Step]:
    """Return a step on a tiny batch, and that of a recipe."""
    return Step(replace(recipe, size=(16, 16), batch_size=2)), Step(recipe)


if __name__ == "__main__":
    main()
