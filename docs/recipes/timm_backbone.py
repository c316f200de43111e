"""timm: a backbone with a small decoder and pixel contrast.

    python timm_backbone.py

`features_only=True` returns feature maps at several strides, and `feature_info` describes their
channels, so the script works with other models of `timm.list_models()`.
"""

import timm
import torch
from torch import nn

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 4, 40, 8
IGNORE = 255  # the label of pixels without a class in your data


class Segmenter(nn.Module):
    """Project the maps of a timm backbone to one width and add them at the finest resolution."""

    def __init__(self, name: str, width: int = 64) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            name, pretrained=False, features_only=True, out_indices=(1, 2, 3)
        )  # or pretrained=True
        channels = self.backbone.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        maps = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        size = maps[0].shape[2:]
        return sum(nn.functional.interpolate(x, size, mode="bilinear") for x in maps)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(self.features(images))
        return nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of four noisy colors, (count, 3, 64, 64), and their labels."""
    labels = torch.randint(CLASSES, (count, 2, 2)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return colors + 0.6 * torch.randn(count, 3, 64, 64), labels


def main() -> None:
    torch.manual_seed(0)
    model = Segmenter("resnet10t")
    # Used in training only.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=8),
        bank=MemoryBank(
            CLASSES,
            64,
            pixel_slots=100,
            region_slots=50,
            pixels_per_image=2,
            pixels_per_region=128,
            ignore_index=IGNORE,
        ),
        projection=ProjectionHead(64, 64),
    )
    # The backbone has a lower learning rate than the projection head and the classifier.
    backbone = set(model.backbone.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.backbone.parameters()), "lr": 1e-3},
            {"params": [p for p in model.parameters() if p not in backbone]},
            {"params": contrast_loss.parameters()},
        ],
        lr=3e-3,
    )
    model.train()
    for step in range(STEPS):
        images, labels = scenes(BATCH)
        features = model.features(images)
        coarse = model.classifier(features)
        logits = nn.functional.interpolate(coarse, labels.shape[1:], mode="bilinear")
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        contrast = contrast_loss(features, labels, coarse)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    model.eval()
    images, labels = scenes(32)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
