"""Plain PyTorch: cross entropy and pixel contrast with automatic mixed precision.

    python pytorch_amp.py

The loss holds the projection head and the bank, so its parameters are trained and clipped with
those of the network, and it is saved with the network. Prediction does not use it.
"""

import torch
from torch import nn

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 5, 60, 8
IGNORE = 255  # the label of pixels without a class in your data
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# float16 needs a GradScaler, bfloat16 does not.
DTYPE = torch.float16 if DEVICE.type == "cuda" else torch.bfloat16


class Network(nn.Module):
    """A small encoder and decoder that returns logits and features; replace it by yours."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = block(3, width)
        self.down = block(width, 2 * width, stride=2)
        self.up = block(3 * width, width)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stem(images)
        coarse = nn.functional.interpolate(self.down(fine), scale_factor=2.0, mode="bilinear")
        features = self.up(torch.cat([fine, coarse], 1))
        return self.classifier(features), features


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of five noisy colors, (count, 3, 32, 32), and labels; the first row is ignored."""
    labels = torch.randint(CLASSES, (count, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    images = colors + 0.6 * torch.randn(count, 3, 32, 32)
    labels[:, 0] = IGNORE
    return images.to(DEVICE), labels.to(DEVICE)


def main() -> None:
    torch.manual_seed(0)
    network = Network().to(DEVICE)

    # Used in training only. With pixels_per_region, only sampled pixels are projected.
    bank = MemoryBank(
        CLASSES,
        64,
        pixel_slots=200,
        region_slots=50,
        pixels_per_image=2,
        pixels_per_region=128,
        ignore_index=IGNORE,
    )
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=512, max_views=6),
        bank=bank,
        projection=ProjectionHead(32, 64),
    ).to(DEVICE)

    parameters = [*network.parameters(), *contrast_loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=DEVICE.type == "cuda")
    for step in range(STEPS):
        images, labels = scenes(BATCH)
        with torch.autocast(DEVICE.type, DTYPE):
            logits, features = network(images)
            segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
            contrast = contrast_loss(features, labels, logits)
            loss = segmentation + 0.1 * contrast
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        scaler.step(optimizer)
        scaler.update()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    # To resume training, save the loss too: it holds head and bank.
    modules = {"network": network, "contrast_loss": contrast_loss}
    checkpoint = {name: module.state_dict() for name, module in modules.items()}
    occupancy = contrast_loss.stats.bank_occupancy
    print(f"in the checkpoint: {', '.join(checkpoint)}; bank {occupancy:.0%} full")

    network.eval()
    images, labels = scenes(32)
    with torch.no_grad():
        predicted = network(images)[0].argmax(1)
    valid = labels != IGNORE
    print(f"held-out pixel accuracy {(predicted == labels)[valid].float().mean():.3f}")


if __name__ == "__main__":
    main()
