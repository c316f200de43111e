"""Forward hook: the features of an unmodified model, here torchvision's LR-ASPP.

    python forward_hook.py

The hook captures the output of the backbone. The code and the output of the model do not change.
"""

import torch
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from pixcontrast import HardAnchorSampler, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 4, 40, 8
IGNORE = 255  # the label of pixels without a class in your data


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of four noisy colors, (count, 3, 64, 64), and their labels."""
    labels = torch.randint(CLASSES, (count, 2, 2)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return colors + 0.6 * torch.randn(count, 3, 64, 64), labels


def main() -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # torchvision's 0.01 needs more steps than this script takes

    # The output of the backbone has "low", (B, 40, H/8, W/8), and "high", (B, 960, H/16, W/16).
    captured: dict[str, torch.Tensor] = {}
    handle = model.backbone.register_forward_hook(
        lambda module, args, output: captured.update(low=output["low"])
    )

    # Used in training only. Labels and logits may have another resolution than the features.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=8),
        projection=ProjectionHead(40, 64),
    )

    optimizer = torch.optim.AdamW([*model.parameters(), *contrast_loss.parameters()], 2e-3)
    model.train()
    for step in range(STEPS):
        images, labels = scenes(BATCH)
        logits = model(images)["out"]
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        # Taken out, because it keeps the graph of the step in memory.
        contrast = contrast_loss(captured.pop("low"), labels, logits)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    handle.remove()
    model.eval()
    images, labels = scenes(32)
    with torch.no_grad():
        predicted = model(images)["out"].argmax(1)
    print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
