"""The pictures of docs/method.md, drawn from the tensors of real calls.

A network is trained on digits over photographs for a while, with a bank. Then one batch of held-out
scenes goes through the sampler, the mining and the bank. The pictures show the anchors and one
anchor's similarities (method-anchor), its positives and hardest negatives (method-negatives), and
the rings of the bank after a few steps with the regions of this batch (method-bank).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks._plots.canvas import grid, save
from benchmarks._plots.scene import IMAGES, Scene, look, sample_anchors
from benchmarks._training.data import SegmentationData
from benchmarks._training.experiment import load_data
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.recipe import Recipe
from benchmarks._training.training import train_arm
from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast._info_nce.derivative import Masks
from pixcontrast._info_nce.thresholds import select_from_rows

SEED = 100
NEGATIVES, POSITIVES = 40, 40
# Far above the weight of the benchmarks, so that the embedding has a visible structure.
WEIGHT = 0.1
EARLY = 8
"""Number of steps after which the rings are shown."""
STAR: dict[str, Any] = {"s": 130, "marker": "*", "color": "lime", "edgecolors": "k"}
COSINE: dict[str, Any] = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}


def draw_method(out: Path, recipe: Recipe) -> None:
    """Train a recipe on the digits, and write the three pictures to a folder."""
    recipe = dataclasses.replace(recipe, weight=WEIGHT)
    data = load_data("digits", "val", recipe.size, None)
    torch.manual_seed(SEED)
    network = SegmentationNetwork(recipe, data.num_classes)
    banks: list[MemoryBank] = []
    early: dict[str, list[int]] = {}

    def observe(step: int, criterion: PixelContrastLoss) -> None:
        assert criterion.bank is not None  # the recipe has one
        banks[:] = [criterion.bank]
        if step < EARLY:
            early.update({queue: banks[0].count(queue).tolist() for queue in ("pixels", "regions")})

    train_arm(network, data, recipe, SEED, observe=observe)
    scene = look(network, data, IMAGES)
    anchors = sample_anchors(scene, recipe, data.num_classes, SEED)
    # The first mispredicted anchor of a digit; without one, the first of a digit.
    of_digit = scene.labels.flatten()[anchors] > 0
    wrong = of_digit & scene.wrong.flatten()[anchors]
    found = next((kind for kind in (wrong, of_digit) if kind.any()), torch.ones_like(of_digit))
    anchor = anchors[found][:1]
    vectors = scene.outputs.embedding.movedim(1, -1).flatten(0, 2)
    cosines = vectors @ vectors[anchor[0]]
    save_anchor(out / "method-anchor.png", scene, anchors, anchor, cosines)
    save_negatives(out / "method-negatives.png", scene, anchor, cosines)
    save_bank(out / "method-bank.png", banks[0], early, scene, data)
    print(f"{out / 'method'}-*.png written")


def save_anchor(path: Path, scene: Scene, anchors: Tensor, anchor: Tensor, cosines: Tensor) -> None:
    """Draw the anchors over the images; below, one anchor's similarity to every pixel."""
    figure, axes = grid(2, IMAGES, (2.3 * IMAGES, 5.0))
    shown: Any = None
    for image, similarity in enumerate(cosines.view(scene.labels.shape)):
        upper, lower = axes[:, image]
        scene.show(upper, scene.pictures[image])
        scene.mark_anchors(upper, anchors, image)
        shown = scene.show(lower, similarity.numpy(), **COSINE)
        scene.mark(lower, anchor, image, **STAR)
    figure.colorbar(shown, ax=axes[1], shrink=0.8, label="cosine")
    figure.suptitle(
        f"Above: {len(anchors)} anchors, mispredicted ones yellow. "
        "Below: cosine of one anchor (star) with every pixel",
        fontsize=10,
    )
    save(figure, path, dpi=85)


def save_negatives(path: Path, scene: Scene, anchor: Tensor, cosines: Tensor) -> None:
    """Draw which entries `HardNegativeSampler(strategy="hardest")` keeps for one anchor."""
    labels, logits = scene.labels.flatten(), cosines[None]
    same = (labels == labels[anchor])[None]
    candidates = same.clone()
    candidates[0, anchor] = False
    mining = HardNegativeSampler(
        strategy="hardest", num_negatives=NEGATIVES, num_positives=POSITIVES
    )
    masks = Masks(candidates, ~same)
    kept_positive, kept_negative = select_from_rows(mining, logits, masks, seed=None)
    sides = (
        ("negatives", "red", ~same, kept_negative),
        ("positives", "deepskyblue", candidates, kept_positive),
    )
    figure = plt.figure(figsize=(2.3 * IMAGES, 4.9), layout="constrained")
    cells = figure.add_gridspec(2, IMAGES, height_ratios=(1.15, 1))
    for image in range(IMAGES):
        axis = figure.add_subplot(cells[0, image])
        scene.show(axis, scene.pictures[image])
        for _, color, _, kept in sides:
            scene.mark(axis, kept[0].nonzero()[:, 0], image, s=12, color=color)
        scene.mark(axis, anchor, image, **STAR)
    axis = figure.add_subplot(cells[1, :])
    bins = np.linspace(-1, 1, 81).tolist()
    for name, color, available, kept in sides:
        axis.hist(logits[available].numpy(), bins, color=color, alpha=0.3, label=f"all {name}")
        axis.hist(logits[kept].numpy(), bins, color=color, label=f"the hardest {name}")
    axis.set(yscale="log", xlabel="cosine with the anchor", ylabel="pixels")
    axis.legend(fontsize=8)
    figure.suptitle(
        f"One anchor (star): its {NEGATIVES} most similar pixels of other classes (red) and the "
        f"{POSITIVES} least similar of its own (blue)",
        fontsize=10,
    )
    save(figure, path, dpi=85)


def save_bank(
    path: Path,
    bank: MemoryBank,
    early: dict[str, list[int]],
    scene: Scene,
    data: SegmentationData,
) -> None:
    """Draw how the rings fill at first, and how the batch's regions agree with the bank's."""
    fresh = MemoryBank(bank.num_classes, bank.dim, pixel_slots=0, region_slots=IMAGES)
    fresh.update(scene.outputs.embedding, scene.labels)
    classes = range(bank.num_classes)
    stored, now = (
        torch.stack([one.regions[c, : one.region_count[c]].mean(0) for c in classes])
        for one in (bank, fresh)
    )
    cosine = torch.nn.functional.cosine_similarity(now[:, None], stored[None], dim=2)
    cosine[fresh.region_count == 0] = torch.nan
    figure, ((left, right),) = grid(1, 2, (9.2, 4.0))
    names = list(data.class_names)
    for offset, queue, color in ((-0.2, "pixels", "tab:green"), (0.2, "regions", "tab:orange")):
        places = [number + offset for number in classes]
        left.barh(places, early[queue], height=0.4, color=color, label=queue)
    left.set_yticks(list(classes), names)
    left.invert_yaxis()
    left.set_xlabel("written slots")
    left.set_title(f"two rings a class, after {EARLY} batches", fontsize=10)
    left.legend(fontsize=8, loc="lower right")
    shown = right.imshow(cosine.numpy(), **COSINE)
    right.set_xticks(list(classes), names, rotation=90)
    right.set_yticks(list(classes), names)
    right.set(xlabel="regions of earlier batches, in the bank", ylabel="regions of this batch")
    right.set_title("mean cosine of regions", fontsize=10)
    figure.colorbar(shown, ax=right, shrink=0.8)
    save(figure, path, dpi=85)
