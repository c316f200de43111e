"""What contrast costs a training: time and memory of a step with it and without it.

    python -m benchmarks.price
    python -m benchmarks.price --networks small --repeats 30

A step is the whole of it: the network forward and backward, the losses, the optimiser, the bank.
The ways are timed in turn within one run; memory is what one step needs beyond the network, the
images and the bank, in a process of its own. Inference is not here: it needs neither the loss nor
the projection head.
"""

import argparse
import dataclasses
import json
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks._measure.arguments import positive, size_of
from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.protocol import BANK, LARGE, SGD
from benchmarks._training.recipe import Recipe
from benchmarks._training.training import Arm
from benchmarks.batches import BatchShape, draw_bank, draw_patches
from benchmarks.script import add_run_options, cell, look_at_machine, set_threads, write_record
from benchmarks.timing import alternate, measured_peak, peak_memory, summarise

WAYS: dict[str, dict[str, Any]] = {
    "cross entropy": {"sources": (), "bank": 0},
    "the batch": {"sources": ("batch",), "bank": 0},
    "both banks": {"sources": None},
}
REFERENCE = "cross entropy"
BASES = {
    "small": dataclasses.replace(SGD, **BANK),
    "large": dataclasses.replace(LARGE, bank=500, pixels_per_image=10),
}
NUM_CLASSES = 11
CLASSES_OF_IMAGE = (6, 10)


class Step:
    """A training step of one way, on one batch that is drawn and not loaded; its bank is full."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(0)
        network = SegmentationNetwork(recipe, NUM_CLASSES)
        self.arm = Arm(network, NUM_CLASSES, recipe, seed=0, contrast=recipe.has_contrast)
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
        self.labels: Tensor = labels.masked_fill(labels < 0, IGNORE_INDEX)
        images = torch.randn(recipe.batch_size, 3, *self.labels.shape[-2:])
        self.images = images.contiguous(memory_format=torch.channels_last)
        if self.arm.criterion is not None and self.arm.criterion.bank is not None:
            bank = self.arm.criterion.bank
            for queue, vectors in zip(
                (bank.pixels, bank.regions), draw_bank(shape, labels.device), strict=True
            ):
                queue.copy_(vectors)
            bank.pixel_count.fill_(bank.pixel_slots)
            bank.region_count.fill_(bank.region_slots)

    def __call__(self) -> None:
        """One step."""
        self.arm.descend(self.arm.losses(self.images, self.labels, step=0).total(), step=0)


def main(arguments: list[str] | None = None) -> None:
    """Time and weigh a step of every way: a table and a JSON."""
    options = _parser().parse_args(arguments)
    set_threads(options.threads)
    if options.peak is not None:
        recipe = _recipe(options.networks[0], options.peak, options)
        # First on a tiny batch: threads and libraries are not the step's own.
        Step(dataclasses.replace(recipe, size=(16, 16), batch_size=2))()
        print(json.dumps(measured_peak(Step(recipe))))
        return
    environment = look_at_machine(options.refuse_busy)
    rows = [_measure(name, options) for name in tqdm(options.networks, leave=False, disable=None)]
    print(_table(rows))
    if options.out is not None:
        write_record(options.out / "price.json", {"environment": environment, "rows": rows})
        print(f"{options.out / 'price.json'} written")


def _recipe(network: str, way: str, options: argparse.Namespace) -> Recipe:
    given = {name: getattr(options, name) for name in ("size", "batch_size")}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(BASES[network], **WAYS[way], **changes)


def _measure(network: str, options: argparse.Namespace) -> dict[str, Any]:
    steps = {way: Step(_recipe(network, way, options)) for way in WAYS}
    measured = summarise(alternate(steps, options.repeats), (REFERENCE,))
    parameters = sum(weight.numel() for weight in steps[REFERENCE].arm.network.parameters())
    steps.clear()
    for way, one in measured.items():
        one["extra_mb"] = _peak(network, way, options) if options.memory else None
    recipe = _recipe(network, "both banks", options)
    return {
        "network": network,
        "parameters": parameters,
        "recipe": dataclasses.asdict(recipe),
        "measured": measured,
    }


def _peak(network: str, way: str, options: argparse.Namespace) -> float | None:
    recipe = _recipe(network, way, options)
    height, width = recipe.size
    size, batch = f"{height}x{width}", str(recipe.batch_size)
    given = ("--networks", network, "--size", size, "--batch-size", batch)
    threads = ("--threads", str(torch.get_num_threads()))
    return peak_memory("benchmarks.price", "--peak", way, *given, *threads)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':<34}{'way':<16}{'ms a step':>10}{'ratio':>8}{'spread':>8}{'extra MB':>10}"]
    for row in rows:
        height, width = row["recipe"]["size"]
        title = f"{row['network']}, {row['recipe']['batch_size']} images of {height}x{width}"
        for way, one in row["measured"].items():
            lines.append(
                f"{title:<34}{way:<16}{1000 * one['seconds']:>10.0f}"
                f"{one[f'to_{REFERENCE}']:>8.2f}{one['spread']:>8.2f}{cell(one['extra_mb'], 10, 0)}"
            )
            title = ""
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.price",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--networks", nargs="+", choices=list(BASES), default=list(BASES), metavar="NAME")
    add("--size", type=size_of, metavar="HxW", help="size of the images")
    add("--batch-size", type=positive, metavar="N", help="images in a batch")
    add_run_options(parser, repeats=9)
    add("--peak", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
