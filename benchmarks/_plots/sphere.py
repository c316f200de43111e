"""What the loss does to an embedding of three dimensions: the picture of the README.

scikit-learn's handwritten digits, two thirds of them for training; a network with one hidden layer
and a unit-length embedding of three components, so that every digit is a point on a sphere; the
loss alone, without cross entropy. The picture shows held-out digits before, early in and after the
training, on an equal-area map of the sphere. The record holds the mean cosines.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks._measure.command import write_record
from benchmarks._measure.environment import describe_environment
from benchmarks._plots.canvas import save
from pixcontrast import PixelContrastLoss, RandomAnchorSampler

SHOWN = (0, 20, 400)
CLASSES = 10
BATCH = 256


def draw_sphere(out: Path) -> None:
    """Train, and write the picture and its record to a folder."""
    environment = describe_environment()
    embedded, labels = train()
    cosines = [mean_cosines(points, labels) for points in embedded]
    save_sphere(out / "sphere.png", embedded, labels, cosines)
    record = {
        "environment": environment,
        "steps": list(SHOWN),
        "heldout": len(labels),
        "within": [within for within, _ in cosines],
        "between": [between for _, between in cosines],
    }
    write_record(out / "sphere.json", record)
    print(f"{out / 'sphere'}.png and .json written")


def train() -> tuple[list[Tensor], Tensor]:
    """Return the held-out embeddings (n, 3) after each of the `SHOWN` steps, and labels (n,)."""
    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    heldout = torch.arange(len(labels)) % 3 == 0
    train_images, train_labels = images[~heldout], labels[~heldout]
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    contrast = PixelContrastLoss(anchor_sampler=RandomAnchorSampler(max_anchors=BATCH))
    embedded = []
    for step in range(max(SHOWN) + 1):
        if step in SHOWN:
            with torch.no_grad():
                embedded.append(F.normalize(network(images[heldout]), dim=1))
        batch = torch.randint(len(train_images), (BATCH,), generator=generator)
        loss = contrast(network(train_images[batch]), train_labels[batch], generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return embedded, labels[heldout]


def mean_cosines(points: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean cosine of two points of the same class, and of two classes."""
    cosines = points.double() @ points.double().T
    same = labels[:, None] == labels[None, :]
    others = ~torch.eye(len(labels), dtype=torch.bool)
    return float(cosines[same & others].mean()), float(cosines[~same].mean())


def save_sphere(
    path: Path, embedded: list[Tensor], labels: Tensor, cosines: list[tuple[float, float]]
) -> None:
    """Draw each set of points (n, 3) on an equal-area map."""
    figure, axes = plt.subplots(
        1,
        len(embedded),
        figsize=(4.0 * len(embedded), 2.9),
        subplot_kw={"projection": "mollweide"},
        layout="constrained",
    )
    for axis, points, (within, between), step in zip(axes, embedded, cosines, SHOWN, strict=True):
        longitude = torch.atan2(points[:, 1], points[:, 0]).numpy()
        latitude = torch.asin(points[:, 2].clamp(-1, 1)).numpy()
        for digit in range(CLASSES):
            own = (labels == digit).numpy()
            color = plt.get_cmap("tab10")(digit)
            axis.scatter(longitude[own], latitude[own], s=7, color=color, label=str(digit))
        axis.set_title(
            f"step {step}: mean cosine {within:.2f} within a class,\n{between:.2f} between classes",
            fontsize=9,
        )
        axis.set_xticklabels([])
        axis.set_yticklabels([])
        axis.grid(alpha=0.3)
    legend = axes[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower center", ncols=10, fontsize=8)
    save(figure, path, dpi=100)
