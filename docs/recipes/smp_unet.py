"""segmentation_models_pytorch: a Unet with Dice loss and pixel contrast.

    python smp_unet.py

The model consists of encoder, decoder and segmentation head. Training calls the three separately,
so that the loss gets the input of the segmentation head. Prediction calls the model.
"""

import segmentation_models_pytorch as smp
import torch

from pixcontrast import HardAnchorSampler, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 4, 30, 8
IGNORE = 255  # the label of pixels without a class in your data


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of four noisy colors, (count, 3, 64, 64), and their labels."""
    labels = torch.randint(CLASSES, (count, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return colors + 0.6 * torch.randn(count, 3, 64, 64), labels


def main() -> None:
    torch.manual_seed(0)
    channels = (64, 32, 16)
    model = smp.Unet(
        "resnet18",
        encoder_weights=None,  # or "imagenet"
        encoder_depth=3,
        decoder_channels=channels,
        classes=CLASSES,
    )
    # Used in training only.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=512, max_views=12),
        projection=ProjectionHead(channels[-1], 64),
    )

    dice = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, ignore_index=IGNORE)
    optimizer = torch.optim.AdamW([*model.parameters(), *contrast_loss.parameters()], 2e-3)
    model.train()
    for step in range(STEPS):
        images, labels = scenes(BATCH)
        decoded = model.decoder(model.encoder(images))
        logits = model.segmentation_head(decoded)
        segmentation = dice(logits, labels)
        contrast = contrast_loss(decoded, labels, logits)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step}: dice {segmentation:.3f}, contrast {contrast:.3f}")

    model.eval()
    images, labels = scenes(32)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    counts = smp.metrics.get_stats(predicted, labels, mode="multiclass", num_classes=CLASSES)
    print(f"held-out IoU {smp.metrics.iou_score(*counts, reduction='macro'):.3f}")
    print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
