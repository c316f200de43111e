"""The README's picture: what the loss does to an embedding of three dimensions.

    python -m benchmarks.figure_sphere

scikit-learn's handwritten digits, two thirds of them for training; a network of one hidden layer;
an embedding of unit length and three components, so that every digit is a point of a sphere; the
loss alone, no cross entropy. Drawn are held-out digits before, early and at the end, on a map of
the sphere that keeps areas, and written beside the picture what the mean cosines were.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks._measure.arguments import picture_parser
from benchmarks.environment import describe_environment
from benchmarks.script import write_record
from pixcontrast import PixelContrastLoss, RandomAnchorSampler

SHOWN = (0, 20, 400)
CLASSES = 10
BATCH = 256


def main(arguments: list[str] | None = None) -> None:
    """Train, draw, and write the record."""
    options = picture_parser("figure_sphere", __doc__).parse_args(arguments)
    torch.set_num_threads(1)
    embedded, labels = train(*_digits(), shown=SHOWN)
    cosines = [mean_cosines(points, labels) for points in embedded]
    save_sphere(options.out / "sphere.png", embedded, labels, cosines)
    record = {
        "environment": describe_environment(),
        "steps": list(SHOWN),
        "heldout": len(labels),
        "within": [within for within, _ in cosines],
        "between": [between for _, between in cosines],
    }
    write_record(options.out / "sphere.json", record)
    print(f"{options.out / 'sphere'}.png and .json written")


def train(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, shown: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """The held-out embeddings (n, 3) after each of the `shown` steps, and their labels (n,)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.003)
    contrast = PixelContrastLoss(anchor_sampler=RandomAnchorSampler(max_anchors=BATCH))
    embedded = []
    for step in range(max(shown) + 1):
        if step in shown:
            with torch.no_grad():
                embedded.append(F.normalize(network(test_x), dim=1))
        batch = torch.randint(len(train_x), (BATCH,), generator=generator)
        loss = contrast(network(train_x[batch]), train_y[batch], generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return embedded, test_y


def mean_cosines(points: Tensor, labels: Tensor) -> tuple[float, float]:
    """The mean cosine of two points of one class, and of two classes."""
    cosines = points.double() @ points.double().T
    same = labels[:, None] == labels[None, :]
    others = ~torch.eye(len(labels), dtype=torch.bool)
    return float(cosines[same & others].mean()), float(cosines[~same].mean())


def save_sphere(
    path: Path, embedded: list[Tensor], labels: Tensor, cosines: list[tuple[float, float]]
) -> None:
    """Draw each set of points (n, 3) on a map that keeps areas."""
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
        for number in range(CLASSES):
            own = (labels == number).numpy()
            colour = plt.get_cmap("tab10")(number)
            axis.scatter(longitude[own], latitude[own], s=7, color=colour, label=str(number))
        axis.set_title(
            f"step {step}: mean cosine {within:.2f} within a class,\n{between:.2f} between classes",
            fontsize=9,
        )
        axis.set_xticklabels([])
        axis.set_yticklabels([])
        axis.grid(alpha=0.3)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = load_digits()
    images = torch.from_numpy(found.data).float() / 16
    labels = torch.from_numpy(found.target).long()
    heldout = torch.arange(len(labels)) % 3 == 0
    return images[~heldout], labels[~heldout], images[heldout], labels[heldout]


if __name__ == "__main__":
    main()
