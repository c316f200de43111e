"""Lightning: a LightningModule with pixel contrast.

    python lightning_segmentation.py

The loss, with its head and its bank, is an attribute of the module, so Lightning moves it to the
device, trains it and saves it in checkpoints. A resumed run continues with the saved bank.
`forward` does not use the loss.
"""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES = 5
IGNORE = 255  # the label of pixels without a class in your data


class Segmentation(L.LightningModule):
    def __init__(self, learning_rate: float = 0.1, contrast_weight: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Conv2d(32, CLASSES, 1)
        # Used in training only.
        self.contrast = PixelContrastLoss(
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

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        features = self.backbone(images)
        logits = self.classifier(features)
        segmentation = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        contrast = self.contrast(features, labels, logits)
        self.log_dict({"train/cross_entropy": segmentation, "train/contrast": contrast})
        return segmentation + self.hparams.contrast_weight * contrast

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        right = self(images).argmax(1) == labels
        self.log("val/accuracy", right.float().mean(), batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.hparams.learning_rate, momentum=0.9)


def scenes(count: int) -> TensorDataset:
    """Squares of five noisy colors, (count, 3, 32, 32), and their labels."""
    labels = torch.randint(CLASSES, (count, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    colors = labels[:, None] >> torch.arange(3)[:, None, None] & 1  # binary code of the class
    return TensorDataset(colors + 0.6 * torch.randn(count, 3, 32, 32), labels)


def main() -> None:
    L.seed_everything(0)
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    model = Segmentation()
    train = DataLoader(scenes(96), batch_size=8, shuffle=True)
    val = DataLoader(scenes(32), batch_size=8)
    trainer.fit(model, train, val)
    print(f"contrast {trainer.callback_metrics['train/contrast']:.3f} at the end")
    print(f"held-out pixel accuracy {trainer.callback_metrics['val/accuracy']:.3f}")


if __name__ == "__main__":
    main()
