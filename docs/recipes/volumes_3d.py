"""3D volumes: a small U-Net with contrast of voxels.

    python volumes_3d.py

Features are (B, C, depth, height, width) and labels (B, depth, height, width). Most voxels are
background; the sampler takes as many anchors from a small class as from a large one.
"""

import torch
from torch import nn

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH, SIZE = 3, 40, 4, 16
IGNORE = 255  # the label of voxels without a class in your data


class UNet3d(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = block(1, width)
        self.down = block(width, 2 * width, stride=2)
        self.up = block(3 * width, width)
        self.classifier = nn.Conv3d(width, CLASSES, 1)

    def features(self, volumes: torch.Tensor) -> torch.Tensor:
        fine = self.stem(volumes)
        coarse = nn.functional.interpolate(self.down(fine), scale_factor=2.0, mode="trilinear")
        return self.up(torch.cat([fine, coarse], 1))

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(volumes))


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.InstanceNorm3d(outputs, affine=True), nn.ReLU())


def patches(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return volumes (count, 1, 16, 16, 16) with a bright and a dark ball, and labels."""
    axes = torch.arange(SIZE, dtype=torch.float32)
    positions = torch.stack(torch.meshgrid(axes, axes, axes, indexing="ij"), -1)
    labels = torch.zeros(count, SIZE, SIZE, SIZE, dtype=torch.long)
    for label, radius in ((1, 5.0), (2, 3.0)):
        centers = radius + torch.rand(count, 1, 1, 1, 3) * (SIZE - 2 * radius)
        labels[(positions - centers).norm(dim=-1) < radius] = label
    volumes = torch.tensor([0.0, 1.0, -1.0])[labels] + 0.5 * torch.randn(labels.shape)
    return volumes[:, None], labels


def main() -> None:
    torch.manual_seed(0)
    network = UNet3d()
    # Used in training only.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=16),
        bank=MemoryBank(
            CLASSES,
            32,
            pixel_slots=100,
            region_slots=50,
            pixels_per_image=5,
            pixels_per_region=128,
            ignore_index=IGNORE,
        ),
        projection=ProjectionHead(16, 32),
    )
    optimizer = torch.optim.AdamW([*network.parameters(), *contrast_loss.parameters()], 5e-3)
    for step in range(STEPS):
        volumes, labels = patches(BATCH)
        features = network.features(volumes)
        logits = network.classifier(features)
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        contrast = contrast_loss(features, labels, logits)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    network.eval()
    volumes, labels = patches(8)
    with torch.no_grad():
        predicted = network(volumes).argmax(1)
    bodies = labels > 0
    print(f"voxel accuracy inside the bodies {accuracy(predicted, labels, bodies):.3f}")
    print(f"held-out voxel accuracy {accuracy(predicted, labels, labels >= 0):.3f}")


def accuracy(predicted: torch.Tensor, labels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (predicted == labels)[where].float().mean()


if __name__ == "__main__":
    main()
