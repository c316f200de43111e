"""Add a class with five clicks to a trained network, and search for its pixels.

    python new_class.py

In training the pixels of one class are void. Afterwards five of them are labeled. Every pixel gets
the class whose mean feature is most similar, the new class included; nothing is trained again. The
features are those before the classifier, where contrast gained (docs/embedding.md).
"""

import torch
from torch import nn

from pixcontrast import HardAnchorSampler, PixelContrastLoss, ProjectionHead

CLASSES, STEPS, BATCH = 5, 60, 8
NEW, CLICKS = CLASSES, 5  # the label of the new class, and its labeled pixels
IGNORE = 255  # the label of pixels without a class


def network(width: int = 32) -> tuple[nn.Module, nn.Module]:
    """Return a backbone and a classifier; replace them by yours."""
    backbone = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip
    return backbone, nn.Conv2d(width, CLASSES, 1)


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of six noisy colors, (count, 3, 32, 32), and their labels."""
    labels = torch.randint(NEW + 1, (count, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return colors + 0.4 * torch.randn(count, 3, 32, 32), labels


def rows(maps: torch.Tensor) -> torch.Tensor:
    """Return the features of all pixels (n, C) of maps (B, C, H, W)."""
    return maps.movedim(1, -1).flatten(0, -2)


def main() -> None:
    torch.manual_seed(0)
    backbone, classifier = network()
    # Used in training only.
    contrast_loss = PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=512, max_views=12),
        projection=ProjectionHead(32, 64),
    )
    parameters = [
        *backbone.parameters(), *classifier.parameters(), *contrast_loss.parameters(),
    ]  # fmt: skip
    optimizer = torch.optim.SGD(parameters, 0.05, momentum=0.9)
    for step in range(STEPS):
        images, labels = scenes(BATCH)
        labels[labels == NEW] = IGNORE
        features = backbone(images)
        logits = classifier(features)
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        contrast = contrast_loss(features, labels, logits)
        optimizer.zero_grad()
        (segmentation + 0.1 * contrast).backward()
        optimizer.step()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"step {step}: cross entropy {segmentation:.3f}, contrast {contrast:.3f}")

    backbone.eval()
    with torch.no_grad():
        images, labels = scenes(BATCH)
        features, labels = rows(backbone(images)), labels.flatten()
        center = features.mean(0)
        embedded = nn.functional.normalize(features - center, dim=1)
        # The known classes have all their labeled pixels, the new class five.
        clicked = (labels == NEW).nonzero()[:, 0]
        clicked = clicked[torch.randperm(len(clicked))[:CLICKS]]
        known = [embedded[labels == index].mean(0) for index in range(CLASSES)]
        means = nn.functional.normalize(torch.stack([*known, embedded[clicked].mean(0)]), dim=1)

        images, labels = scenes(32)
        features, labels = rows(backbone(images)), labels.flatten()
        similarity = nn.functional.normalize(features - center, dim=1) @ means.T
        predicted = similarity.argmax(1)
        found = similarity[:, NEW].topk(100).indices
    recall = (predicted[labels == NEW] == NEW).float().mean()
    print(f"new class: {recall:.3f} of its pixels recognized")
    print(f"search: {(labels[found] == NEW).sum()} of the first {len(found)} pixels are of it")
    print(f"held-out pixel accuracy {(predicted == labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
