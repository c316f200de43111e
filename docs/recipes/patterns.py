"""Patterns: six variations of a training step, one function each.

    python patterns.py

Each function trains a small network for a few steps on random images. Replace network and data by
yours.
"""

import copy

import torch
from torch import nn
from torch.optim import SGD

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES, WIDTH, DIM, STEPS = 4, 16, 32, 4
IGNORE = 255  # the label of pixels without a class in your data


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (2, 3, 16, 16) and labels (2, 16, 16), whose first row is ignored."""
    labels = torch.randint(CLASSES, (2, 16, 16))
    labels[:, 0] = IGNORE
    return torch.randn(2, 3, 16, 16), labels


def make_bank() -> MemoryBank:
    sizes = {"pixel_slots": 40, "region_slots": 20, "pixels_per_region": 128}
    return MemoryBank(CLASSES, DIM, **sizes, ignore_index=IGNORE)


def make_loss(width: int = WIDTH, **options: object) -> PixelContrastLoss:
    return PixelContrastLoss(
        base_temperature=0.07,
        ignore_index=IGNORE,
        anchor_sampler=HardAnchorSampler(max_anchors=128, max_views=8),
        projection=ProjectionHead(width, DIM),
        **options,
    )


def teacher_keys() -> PixelContrastLoss:
    """Fill the bank with embeddings of a teacher, the moving average of the student."""
    network = nn.Conv2d(3, WIDTH, 3, padding=1)
    contrast_loss = make_loss(bank=make_bank(), update_bank=False)
    student = nn.Sequential(network, contrast_loss.projection)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = SGD(student.parameters(), 0.1)
    for _ in range(STEPS):
        images, labels = batch()
        loss = contrast_loss(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 0.01)
            for old, new in zip(teacher.buffers(), student.buffers(), strict=True):
                old.copy_(new)  # statistics of batch normalization
            contrast_loss.bank.update(teacher(images), labels)
    return contrast_loss


def deep_supervision() -> nn.ModuleList:
    """Contrast several maps of a decoder: one loss with its own head for each of them."""
    stem = nn.Conv2d(3, WIDTH, 3, padding=1)
    down = nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1)
    losses = nn.ModuleList([make_loss(WIDTH), make_loss(2 * WIDTH)])
    weights = [1.0, 0.5]
    optimizer = SGD([*stem.parameters(), *down.parameters(), *losses.parameters()], 0.1)
    for _ in range(STEPS):
        images, labels = batch()
        fine = stem(images)
        maps = [fine, down(fine.relu())]
        terms = zip(weights, losses, maps, strict=True)
        # Each loss resizes the labels to its map.
        loss = sum(weight * term(features, labels) for weight, term, features in terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def gradient_accumulation(micro_batches: int = 2) -> PixelContrastLoss:
    """Contrast the micro-batches of a step with each other through the bank.

    Without a bank, anchors are contrasted with those of their own micro-batch only.
    """
    network, contrast_loss = nn.Conv2d(3, WIDTH, 3, padding=1), make_loss(bank=make_bank())
    optimizer = SGD([*network.parameters(), *contrast_loss.parameters()], 0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(micro_batches):
            images, labels = batch()
            loss = contrast_loss(network(images), labels)  # stores the micro-batch in the bank
            (loss / micro_batches).backward()
        optimizer.step()
    return contrast_loss


def temperature_schedule(start: float = 0.2, end: float = 0.07) -> PixelContrastLoss:
    """Lower the temperature during training.

    With `base_temperature` a lower temperature does not give a larger gradient. A compiled loss is
    compiled again for each new value, so change it once an epoch there.
    """
    network, contrast_loss = nn.Conv2d(3, WIDTH, 3, padding=1), make_loss()
    optimizer = SGD([*network.parameters(), *contrast_loss.parameters()], 0.1)
    for step in range(STEPS):
        contrast_loss.temperature = start + (end - start) * step / (STEPS - 1)
        images, labels = batch()
        loss = contrast_loss(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return contrast_loss


def class_weights() -> PixelContrastLoss:
    """Weight the anchors by their class. A class of weight 0 is ignored, as anchor and as entry."""
    network, contrast_loss = nn.Conv2d(3, WIDTH, 3, padding=1), make_loss()
    table = torch.tensor([0.0, 1.0, 1.0, 3.0])
    optimizer = SGD([*network.parameters(), *contrast_loss.parameters()], 0.1)
    for _ in range(STEPS):
        images, labels = batch()
        # IGNORE is not an index of the table. Ignored pixels stay ignored with any weight.
        weight = table[labels.clamp(0, CLASSES - 1)]
        loss = contrast_loss(network(images), labels, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return contrast_loss


def transformer_tokens() -> PixelContrastLoss:
    """Contrast the patches of a vision transformer, tokens (B, 1 + N, C) with a class token."""
    patches = nn.Conv2d(3, WIDTH, 2, stride=2)
    encoder = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True)
    class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
    contrast_loss = make_loss()
    modules = nn.ModuleList([patches, encoder, contrast_loss])
    optimizer = SGD([*modules.parameters(), class_token], 0.1)
    for _ in range(STEPS):
        images, labels = batch()
        grid = patches(images)
        tokens = grid.flatten(2).movedim(1, -1)
        tokens = encoder(torch.cat([class_token.expand(len(images), -1, -1), tokens], 1))
        # (B, N, C) to (B, C, h, w): the loss needs channels first and image dimensions.
        features = tokens[:, 1:].movedim(-1, 1).unflatten(2, grid.shape[2:])
        loss = contrast_loss(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return contrast_loss


PATTERNS = (
    teacher_keys,
    deep_supervision,
    gradient_accumulation,
    temperature_schedule,
    class_weights,
    transformer_tokens,
)


def main() -> None:
    torch.manual_seed(0)
    for pattern in PATTERNS:
        trained = pattern()
        for loss in trained if isinstance(trained, nn.ModuleList) else [trained]:
            stats = loss.stats
            print(f"{pattern.__name__}: {stats.anchors} anchors, {stats.entries} entries")


if __name__ == "__main__":
    main()
