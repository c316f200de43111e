"""MONAI: a deeply supervised network and DeepSupervisionLoss around the contrast.

    python monai_deep_supervision.py

DeepSupervisionLoss calls its loss once for each map, with labels (B, 1, *S) as floats, resized to
the map, and adds up the weighted results. Labels and images may be MONAI's MetaTensor.
"""

import torch
from monai.data import MetaTensor
from monai.losses import DeepSupervisionLoss, DiceCELoss
from torch import nn

from pixcontrast import HardAnchorSampler, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH, WIDTHS = 3, 40, 4, (16, 32)
IGNORE = 255  # the label of voxels without a class in your data


class Network(nn.Module):
    """Return the feature maps and the logits of two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        fine, coarse = WIDTHS
        self.stem = block(1, fine)
        self.down = block(fine, coarse, stride=2)
        self.up = block(fine + coarse, fine)
        self.classifiers = nn.ModuleList(nn.Conv3d(width, CLASSES, 1) for width in WIDTHS)

    def forward(self, volumes: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        fine = self.stem(volumes)
        coarse = self.down(fine)
        upsampled = nn.functional.interpolate(coarse, scale_factor=2.0, mode="trilinear")
        maps = [self.up(torch.cat([fine, upsampled], 1)), coarse]
        logits = [layer(features) for layer, features in zip(self.classifiers, maps, strict=True)]
        return maps, logits


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs), nn.ReLU())


class ContrastOfMaps(nn.Module):
    """One loss, with its own head, for each width of the decoder's maps."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = nn.ModuleDict()
        for width in WIDTHS:
            self.losses[str(width)] = PixelContrastLoss(
                base_temperature=0.07,
                ignore_index=IGNORE,
                anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=16),
                projection=ProjectionHead(width, 32),
            )

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.losses[str(features.shape[1])](features, labels.long())


def patches(count: int) -> tuple[MetaTensor, MetaTensor]:
    """Return volumes and labels (count, 1, 16, 16, 16): thick noisy layers of three classes."""
    labels = torch.randint(CLASSES, (count, 1, 4, 1, 1)).repeat_interleave(4, 2)
    labels = labels.expand(-1, -1, -1, 16, 16)
    volumes = torch.tensor([0.0, 1.0, -1.0])[labels] + 0.5 * torch.randn(labels.shape)
    return MetaTensor(volumes), MetaTensor(labels.float())


def main() -> None:
    torch.manual_seed(0)
    network = Network()
    segmentation_loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
    contrast_loss = DeepSupervisionLoss(ContrastOfMaps())  # used in training only
    optimizer = torch.optim.AdamW([*network.parameters(), *contrast_loss.parameters()], 5e-3)
    for step in range(STEPS):
        volumes, labels = patches(BATCH)
        maps, logits = network(volumes)
        segmentation = segmentation_loss(logits, labels)
        contrast = contrast_loss(maps, labels)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: Dice and CE {segmentation:.3f}, contrast {contrast:.3f}")

    network.eval()
    volumes, labels = patches(8)
    with torch.no_grad():
        predicted = network(volumes)[1][0].argmax(1, keepdim=True)
    print(f"held-out voxel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
