"""Point clouds: a PointNet on packed clouds of different sizes.

    python point_clouds.py

Packed points, as in sparse convolutions and graph networks, are (N, channels). The loss accepts
them directly and treats all N points as one image. Padded clouds, (B, channels, N), are images with
one spatial dimension; give padding the label `ignore_index`.
"""

import torch
from torch import nn

from pixcontrast import HardAnchorSampler, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, CLOUDS = 3, 60, 6
IGNORE = 255  # the label of points without a class in your data


class PointNet(nn.Module):
    """Combine the features of each point with the maximum over its cloud."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.local = layers(3, width, width)
        self.mixed = layers(2 * width, width, width)
        self.classifier = nn.Linear(width, CLASSES)

    def features(self, points: torch.Tensor, cloud: torch.Tensor) -> torch.Tensor:
        local = self.local(points)
        start = local.new_full((int(cloud.max()) + 1, local.shape[1]), -torch.inf)
        maximum = start.scatter_reduce(0, cloud[:, None].expand_as(local), local, "amax")
        return self.mixed(torch.cat([local, maximum[cloud]], 1))

    def forward(self, points: torch.Tensor, cloud: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(points, cloud))


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, outputs), nn.BatchNorm1d(outputs), nn.ReLU(),
    )  # fmt: skip


def clouds(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return points (N, 3) on a floor, a wall and a ball, cloud indices (N,) and labels (N,)."""
    points, cloud, labels = [], [], []
    for number in range(count):
        size = int(torch.randint(200, 400, ()))
        label = torch.randint(CLASSES, (size,))
        flat = 2 * torch.rand(size, 3) - 1
        floor = flat * torch.tensor([1.0, 1.0, 0.0]) - torch.tensor([0.0, 0.0, 1.0])
        wall = flat * torch.tensor([0.0, 1.0, 1.0]) + torch.tensor([1.0, 0.0, 0.0])
        ball = 0.4 * nn.functional.normalize(torch.randn(size, 3), dim=1)
        shapes = torch.stack([floor, wall, ball])
        points.append(shapes[label, torch.arange(size)] + 0.03 * torch.randn(size, 3))
        cloud.append(torch.full((size,), number))
        labels.append(label)
    return torch.cat(points), torch.cat(cloud), torch.cat(labels)


def main() -> None:
    torch.manual_seed(0)
    network = PointNet()
    # Used in training only. All points are one image, so max_views limits the anchors.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=512, max_views=64),
        projection=ProjectionHead(64, 32),
    )
    optimizer = torch.optim.AdamW([*network.parameters(), *contrast_loss.parameters()], 3e-3)
    for step in range(STEPS):
        points, cloud, labels = clouds(CLOUDS)
        features = network.features(points, cloud)
        logits = network.classifier(features)
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        contrast = contrast_loss(features, labels, logits)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    network.eval()
    points, cloud, labels = clouds(16)
    with torch.no_grad():
        predicted = network(points, cloud).argmax(1)
    print(f"held-out point accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
