"""Draw the picture of the README: what the loss does to an embedding of three dimensions.

    python -m benchmarks.figures --out docs/figures

The data are scikit-learn's handwritten digits, two thirds of them for training. The network has one
hidden layer and a unit-length embedding of three components, so that every digit is a point on a
sphere. It is trained with the loss alone, without cross entropy. The picture shows held-out digits
before, early in and after the training, on an equal-area map of the sphere. The record holds the
mean cosines.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import write_record
from benchmarks._measure.environment import describe_environment
from pixcontrast import PixelContrastLoss, RandomAnchorSampler

SHOWN = (0, 20, 400)
CLASSES = 10
BATCH = 256


def main(arguments: list[str] | None = None) -> None:
    """Train, and write the picture and its record to a folder."""
    parser = command_parser("figures", __doc__)
    parser.add_argument("--out", type=Path, default=Path("runs") / "figures", metavar="FOLDER")
    out = parser.parse_args(arguments).out
    # One thread: sums depend on the number of threads.
    torch.set_num_threads(1)
    environment = describe_environment()
    embedded, labels = train()
    # Mean cosines of two points of the same class, and of two classes.
    same = labels[:, None] == labels[None, :]
    others = ~torch.eye(len(labels), dtype=torch.bool)
    cosines = [points.double() @ points.double().T for points in embedded]
    within = [float(one[same & others].mean()) for one in cosines]
    between = [float(one[~same].mean()) for one in cosines]
    titles = [
        f"step {step}: mean cosine {w:.2f} within a class,\n{b:.2f} between classes"
        for step, w, b in zip(SHOWN, within, between, strict=True)
    ]
    record = {"environment": environment, "steps": list(SHOWN), "heldout": len(labels)}
    write_record(out / "sphere.json", {**record, "within": within, "between": between})
    save_sphere(out / "sphere.png", embedded, labels, titles)
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


def save_sphere(path: Path, embedded: list[Tensor], labels: Tensor, titles: list[str]) -> None:
    """Draw each set of points (n, 3) on an equal-area map."""
    figure = Figure(figsize=(3.0 * len(embedded), 2.4), layout="constrained")
    axes = figure.subplots(1, len(embedded), subplot_kw={"projection": "mollweide"})
    for axis, points, title in zip(axes, embedded, titles, strict=True):
        longitude = torch.atan2(points[:, 1], points[:, 0]).numpy()
        latitude = torch.asin(points[:, 2].clamp(-1, 1)).numpy()
        for digit in range(CLASSES):
            own = (labels == digit).numpy()
            color = colormaps["tab10"](digit)
            axis.scatter(longitude[own], latitude[own], s=4, color=color, label=str(digit))
        axis.set_title(title, fontsize=9)
        axis.set(xticklabels=[], yticklabels=[])
        axis.grid(alpha=0.3)
    legend = axes[0].get_legend_handles_labels()
    figure.legend(
        *legend, loc="outside lower center", ncols=10, fontsize=9, markerscale=2, columnspacing=1
    )
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
