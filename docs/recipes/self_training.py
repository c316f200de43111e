"""Self-training: pseudo-labels of a mean teacher, weighted by its confidence.

    python self_training.py

Few images have labels. The teacher, a moving average of the student, labels the others. Pixels with
low confidence are ignored; the other pixels are weighted by the confidence.
"""

import copy

import torch
from torch import nn

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 5, 80, 6
WARM_UP, SURE, MOMENTUM = 20, 0.7, 0.9
IGNORE = 255  # the label of pixels without a class


class Network(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of five noisy colors, (count, 3, 32, 32), and their labels."""
    labels = torch.randint(CLASSES, (count, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return colors + 0.6 * torch.randn(count, 3, 32, 32), labels


@torch.no_grad()
def pseudo_label(teacher: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return classes (B, H, W), IGNORE where the teacher is unsure, and its confidence."""
    confidence, labels = teacher(images).softmax(1).max(1)
    return labels.masked_fill(confidence < SURE, IGNORE), confidence


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module) -> None:
    for old, new in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        old.copy_(old.lerp(new, 1 - MOMENTUM) if old.is_floating_point() else new)


def main() -> None:
    torch.manual_seed(0)
    labeled, unlabeled = scenes(4), scenes(64)[0]
    student = Network()
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    # Used in training only.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=512, max_views=6),
        bank=MemoryBank(
            CLASSES,
            64,
            pixel_slots=200,
            region_slots=50,
            pixels_per_image=2,
            pixels_per_region=128,
            ignore_index=IGNORE,
        ),
        projection=ProjectionHead(32, 64),
    )
    parameters = [*student.parameters(), *contrast_loss.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9)
    for step in range(STEPS):
        images, labels = labeled
        weight = torch.ones(labels.shape)
        if step >= WARM_UP:  # earlier the teacher is not accurate enough
            more = unlabeled[torch.randperm(len(unlabeled))[:BATCH]]
            pseudo_labels, confidence = pseudo_label(teacher, more)
            images = torch.cat([images, more + 0.1 * torch.randn(more.shape)])
            labels = torch.cat([labels, pseudo_labels])
            weight = torch.cat([weight, confidence])
        features = student.backbone(images)
        logits = student.classifier(features)
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        segmentation = (weight * losses).mean()
        contrast = contrast_loss(features, labels, logits, weight=weight)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        update_teacher(teacher, student)
        if step % 20 == 0 or step == STEPS - 1:
            fraction = (labels[len(labeled[0]) :] != IGNORE).sum() / (BATCH * 32 * 32)
            print(
                f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}, "
                f"pseudo-labeled {fraction:.0%}"
            )

    images, labels = scenes(32)
    with torch.no_grad():
        predicted = teacher(images).argmax(1)
    print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
