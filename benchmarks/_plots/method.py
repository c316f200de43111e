"""The pictures of docs/method.md, drawn from the arrays of real calls.

    python -m benchmarks.figure_method

A network is trained on the digits over photographs for a while, with a bank; then one batch of
held-out scenes goes through the sampler, the mining and the bank, and what they answer is drawn:
anchors and one anchor's similarities (method-anchor), its positives and hardest negatives
(method-negatives), the bank's rings after the run and the regions of this batch (method-bank).
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks._measure.arguments import picture_parser, positive
from benchmarks._training.criterion import make_criterion
from benchmarks._training.data import SegmentationData
from benchmarks._training.experiment import load_data
from benchmarks._training.network import Outputs, full_resolution, nearest_labels
from benchmarks._training.training import Arm, Plan, initial_network
from benchmarks.figures import BASES
from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank

IMAGES = 4
SEED = 100
NEGATIVES, POSITIVES = 40, 40
# Far above what the benchmark trains with, so that there is a structure to look at.
WEIGHT = 0.1
EARLY = 8


class Scene(NamedTuple):
    """A batch as the loss sees it: (B, D, H, W), (B, H, W), (B, H, W), and the anchors."""

    embedding: Tensor
    labels: Tensor
    predicted: Tensor
    anchors: Tensor


def main(arguments: list[str] | None = None) -> None:
    """Train, and draw what one batch comes to."""
    parser = picture_parser("figure_method", __doc__)
    parser.add_argument("--steps", type=positive, default=300, metavar="N")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    recipe = dataclasses.replace(BASES["digits"], steps=options.steps, weight=WEIGHT)
    data = load_data("digits", "val", recipe.size, None)
    arm = Arm(initial_network(data, recipe, SEED), data.num_classes, recipe, SEED, True)
    plan = Plan.draw(len(data.train), recipe, SEED)
    assert arm.criterion is not None
    bank = arm.criterion.bank
    assert bank is not None
    early: dict[str, list[int]] = {}
    for step in range(recipe.steps):
        arm.descend(arm.losses(*plan.batch(data.train, step), step).total(), step)
        if step < EARLY:
            early = {queue: bank.count(queue).tolist() for queue in ("pixels", "regions")}
    chosen = torch.linspace(0, len(data.heldout) - 1, IMAGES).round().long()
    scene = look(arm, data, chosen)
    pictures = data.heldout.images[chosen].permute(0, 2, 3, 1).numpy()
    save_anchor(options.out / "method-anchor.png", scene, pictures)
    save_negatives(options.out / "method-negatives.png", scene, pictures)
    save_bank(options.out / "method-bank.png", bank, early, scene, data)
    print(f"{options.out / 'method'}-*.png written")


@torch.no_grad()
def look(arm: Arm, data: SegmentationData, chosen: Tensor) -> Scene:
    """What the network makes of these scenes, and which pixels become anchors."""
    arm.network.eval()
    labels = data.heldout.labels[chosen].long()
    outputs: Outputs = arm.network(data.heldout.network_input(chosen))
    coarse = nearest_labels(labels, outputs.embedding)
    predicted = nearest_labels(full_resolution(outputs.logits, labels).argmax(1), coarse[:, None])
    sampler = make_criterion(arm.recipe, data.num_classes).anchor_sampler
    assert isinstance(sampler, HardAnchorSampler)
    generator = torch.Generator().manual_seed(SEED)
    sample = sampler(coarse.flatten(1), predicted.flatten(1), generator=generator)
    return Scene(outputs.embedding, coarse, predicted, sample.indices[sample.labels != 255])


def chosen_anchor(scene: Scene) -> int:
    """The first anchor that is no background and that the network gets wrong, or the first."""
    labels, predicted = scene.labels.flatten(), scene.predicted.flatten()
    of_digit = labels[scene.anchors] > 0
    wrong = of_digit & (labels != predicted)[scene.anchors]
    kinds = (wrong, of_digit)
    found = next((kind for kind in kinds if kind.any()), torch.ones_like(of_digit))
    return int(scene.anchors[found][0])


def save_anchor(path: Path, scene: Scene, pictures: np.ndarray) -> None:
    """Draw the anchors over the images; below, one anchor's similarity to every pixel."""
    vectors = scene.embedding.movedim(1, -1).flatten(0, 2)
    anchor = chosen_anchor(scene)
    similarity = (vectors @ vectors[anchor]).view(scene.labels.shape)
    hard = (scene.predicted != scene.labels).flatten()
    height, width = scene.labels.shape[-2:]
    figure, axes = plt.subplots(2, IMAGES, figsize=(2.3 * IMAGES, 5.0), layout="constrained")
    shown = None
    for number in range(IMAGES):
        axes[0, number].imshow(pictures[number], extent=(0, width, height, 0))
        own = scene.anchors[scene.anchors // (height * width) == number]
        for is_hard, colour in ((False, "white"), (True, "yellow")):
            place = (own[hard[own] == is_hard] % (height * width)).numpy()
            axes[0, number].scatter(
                place % width + 0.5,
                place // width + 0.5,
                s=14,
                color=colour,
                edgecolors="black",
                linewidths=0.5,
            )
        shown = axes[1, number].imshow(
            similarity[number].numpy(), vmin=-1, vmax=1, cmap="RdBu_r", extent=(0, width, height, 0)
        )
        if anchor // (height * width) == number:
            _mark(axes[1, number], anchor, height, width)
        for row in (0, 1):
            axes[row, number].set_axis_off()
    assert shown is not None
    figure.colorbar(shown, ax=axes[1], shrink=0.8, label="cosine")
    figure.suptitle(
        f"Above: {len(scene.anchors)} anchors, mispredicted ones yellow. "
        "Below: cosine of one anchor (star) with every pixel",
        fontsize=10,
    )
    _save(figure, path)


def save_negatives(path: Path, scene: Scene, pictures: np.ndarray) -> None:
    """Draw which entries `HardNegativeSampler(strategy="hardest")` keeps for one anchor."""
    vectors = scene.embedding.movedim(1, -1).flatten(0, 2)
    labels = scene.labels.flatten()
    anchor = chosen_anchor(scene)
    logits = (vectors[anchor] @ vectors.T)[None]
    same = (labels == labels[anchor])[None]
    candidates = same.clone()
    candidates[0, anchor] = False
    mining = HardNegativeSampler(
        strategy="hardest", num_negatives=NEGATIVES, num_positives=POSITIVES
    )
    kept_positive, kept_negative = mining.select(logits, candidates, ~same, seed=None)
    height, width = scene.labels.shape[-2:]
    figure = plt.figure(figsize=(2.3 * IMAGES, 4.9), layout="constrained")
    grid = figure.add_gridspec(2, IMAGES, height_ratios=(1.15, 1))
    for number in range(IMAGES):
        axis = figure.add_subplot(grid[0, number])
        axis.imshow(pictures[number], extent=(0, width, height, 0))
        for kept, colour in ((kept_negative, "red"), (kept_positive, "deepskyblue")):
            places = kept[0].nonzero()[:, 0]
            place = (places[places // (height * width) == number] % (height * width)).numpy()
            axis.scatter(place % width + 0.5, place // width + 0.5, s=12, color=colour)
        if anchor // (height * width) == number:
            _mark(axis, anchor, height, width)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[1, :])
    bins = np.linspace(-1, 1, 81).tolist()
    for chosen, kept, colour, name in (
        (~same, kept_negative, "red", "negatives"),
        (candidates, kept_positive, "deepskyblue", "positives"),
    ):
        axis.hist(logits[chosen].numpy(), bins=bins, color=colour, alpha=0.3, label=f"all {name}")
        axis.hist(logits[kept].numpy(), bins=bins, color=colour, label=f"the hardest {name}")
    axis.set_yscale("log")
    axis.set_xlabel("cosine with the anchor")
    axis.set_ylabel("pixels")
    axis.legend(fontsize=8)
    figure.suptitle(
        f"One anchor (star): its {NEGATIVES} most similar pixels of other classes (red) and the "
        f"{POSITIVES} least similar of its own (blue)",
        fontsize=10,
    )
    _save(figure, path)


def save_bank(
    path: Path,
    bank: MemoryBank,
    early: dict[str, list[int]],
    scene: Scene,
    data: SegmentationData,
) -> None:
    """Draw how the rings fill at first, and how a batch's regions agree with the full bank's."""
    fresh = MemoryBank(bank.num_classes, bank.dim, pixel_slots=0, region_slots=IMAGES)
    fresh.update(scene.embedding, scene.labels)
    classes = range(bank.num_classes)
    stored = torch.stack([bank.regions[c, : bank.region_count[c]].mean(0) for c in classes])
    now = torch.stack([fresh.regions[c, : fresh.region_count[c]].mean(0) for c in classes])
    cosine = torch.nn.functional.cosine_similarity(now[:, None], stored[None], dim=2)
    cosine[fresh.region_count == 0] = torch.nan
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.0), layout="constrained")
    names = list(data.class_names)
    for offset, queue, colour in ((-0.2, "pixels", "tab:green"), (0.2, "regions", "tab:orange")):
        places = [number + offset for number in classes]
        left.barh(places, early[queue], height=0.4, color=colour, label=queue)
    left.set_yticks(list(classes), names)
    left.invert_yaxis()
    left.set_xlabel("written slots")
    left.set_title(f"two rings a class, after {EARLY} batches", fontsize=10)
    left.legend(fontsize=8, loc="lower right")
    shown = right.imshow(cosine.numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    right.set_xticks(list(classes), names, rotation=90)
    right.set_yticks(list(classes), names)
    right.set_xlabel("regions of earlier batches, in the bank")
    right.set_ylabel("regions of this batch")
    right.set_title("mean cosine of regions", fontsize=10)
    figure.colorbar(shown, ax=right, shrink=0.8)
    _save(figure, path)


def _mark(axis: Axes, pixel: int, height: int, width: int) -> None:
    place = pixel % (height * width)
    axis.scatter(
        place % width + 0.5, place // width + 0.5, s=130, marker="*", color="lime", edgecolors="k"
    )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)
    plt.close(figure)


if __name__ == "__main__":
    main()
