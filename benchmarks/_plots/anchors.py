"""The picture of which pixels become anchors, hard ones and easy ones, over the image."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from benchmarks._training.criterion import make_criterion
from benchmarks._training.data import IGNORE_INDEX, SegmentationData
from benchmarks._training.network import (
    Outputs,
    SegmentationNetwork,
    full_resolution,
    nearest_labels,
)
from benchmarks._training.recipe import Recipe

IMAGES = 4
WRONG, RIGHT = (230, 60, 60), (60, 60, 90)


@torch.no_grad()
def save_anchors(
    path: Path, data: SegmentationData, network: SegmentationNetwork, recipe: Recipe, seed: int
) -> None:
    """Draw the anchors of a batch of held-out images, over the images and over what is wrong."""
    count = min(IMAGES, len(data.heldout))
    chosen = torch.linspace(0, len(data.heldout) - 1, count).round().long()
    images = data.heldout.network_input(chosen)
    labels = data.heldout.labels[chosen].long()
    outputs: Outputs = network(images)
    coarse = nearest_labels(labels, outputs.embedding)
    predicted = nearest_labels(full_resolution(outputs.logits, labels).argmax(1), outputs.embedding)
    criterion = make_criterion(recipe, data.num_classes).eval()
    generator = torch.Generator().manual_seed(seed)
    _, sample = criterion(
        outputs.embedding, labels, predicted, generator=generator, return_anchors=True
    )
    taken = sample.indices[sample.labels != IGNORE_INDEX]
    height, width = coarse.shape[-2:]
    image, place = taken // (height * width), taken % (height * width)
    hard = (predicted != coarse).flatten()[taken]

    figure, axes = plt.subplots(
        2,
        count,
        figsize=(2.9 * count, 5.8 * height / width + 0.9),
        squeeze=False,
        layout="constrained",
    )
    for number in range(count):
        picture = data.heldout.images[chosen[number]].permute(1, 2, 0).numpy()
        wrong = (predicted[number] != coarse[number]) & (coarse[number] != IGNORE_INDEX)
        shown = torch.where(wrong[..., None], torch.tensor(WRONG), torch.tensor(RIGHT)).numpy()
        for row, background in enumerate((picture, shown)):
            axis = axes[row, number]
            # Pixels of the map lie on pixels of the image where both span the same rectangle.
            axis.imshow(background, extent=(0, width, height, 0), interpolation="nearest")
            for is_hard, colour in ((False, "white"), (True, "yellow")):
                own = place[(image == number) & (hard == is_hard)]
                axis.scatter(
                    own % width + 0.5,
                    own // width + 0.5,
                    s=9,
                    color=colour,
                    marker="o",
                    edgecolors="black",
                    linewidths=0.4,
                    label="hard" if is_hard else "easy",
                )
            axis.set_axis_off()
    share = hard.double().mean().item()
    figure.suptitle(
        f"{len(taken)} anchors of {count} images, {share:.0%} of them hard (yellow); "
        "below, mispredicted pixels in red",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
