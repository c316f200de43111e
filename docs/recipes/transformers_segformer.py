"""Hugging Face transformers: SegFormer with pixel contrast in Trainer's `compute_loss_func`.

    python transformers_segformer.py

The contrast branch (the loss with head and bank) is an attribute of the model, so Trainer moves,
optimizes and saves it. It is removed before the final model is saved, so that `from_pretrained` can
load it.
"""

import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    set_seed,
)

from pixcontrast import HardAnchorSampler, MemoryBank, PixelContrastLoss, ProjectionHead

CLASSES = 4
IGNORE = 255  # the label of pixels without a class in your data


class ContrastBranch(nn.Module):
    """The loss; a hook captures the input of SegFormer's classifier."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.loss = PixelContrastLoss(
            base_temperature=0.07,
            ignore_index=IGNORE,
            anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=6),
            bank=MemoryBank(
                CLASSES,
                64,
                pixel_slots=100,
                region_slots=50,
                pixels_per_image=2,
                pixels_per_region=128,
                ignore_index=IGNORE,
            ),
            projection=ProjectionHead(model.config.decoder_hidden_size, 64),
        )
        self.features: torch.Tensor | None = None
        self.hook = model.decode_head.classifier.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.features = inputs[0]

    def forward(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        features, self.features = self.features, None
        return self.loss(features, labels, logits)


class SegmentationLoss:
    """Called by Trainer with the outputs of the model and the labels of the batch."""

    def __init__(self, branch: ContrastBranch, weight: float = 0.1) -> None:
        self.branch = branch
        self.weight = weight

    def __call__(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        logits = nn.functional.interpolate(outputs.logits, labels.shape[-2:], mode="bilinear")
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)
        if self.branch.training:
            loss = loss + self.weight * self.branch(labels, outputs.logits)
        # With gradient_accumulation_steps above 1, divide this mean by it: Trainer does not do it
        # for a compute_loss_func.
        return loss


class Scenes(Dataset):
    """Squares of four noisy colors, in the format of an image processor."""

    def __init__(self, count: int) -> None:
        labels = torch.randint(CLASSES, (count, 2, 2))
        self.labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
        # The binary code of the class.
        colors = self.labels[:, None] >> torch.arange(3)[:, None, None] & 1
        self.images = colors + 0.6 * torch.randn(colors.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def main() -> None:
    set_seed(0)
    config = SegformerConfig(
        num_labels=CLASSES,
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 64],
        decoder_hidden_size=64,
    )
    model = SegformerForSemanticSegmentation(config)  # or .from_pretrained(...)
    model.contrast = ContrastBranch(model)

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                max_steps=40,
                per_device_train_batch_size=8,
                learning_rate=2e-3,
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Scenes(64),
            eval_dataset=Scenes(16),
            compute_loss_func=SegmentationLoss(model.contrast),
        )
        trainer.train()
        print(f"held-out cross entropy {trainer.evaluate()['eval_loss']:.3f}")

        model.contrast.hook.remove()
        del model.contrast
        model.save_pretrained(folder)
        model = SegformerForSemanticSegmentation.from_pretrained(folder)

    held_out = Scenes(32)
    model.eval()
    with torch.no_grad():
        logits = model(pixel_values=held_out.images).logits
    predicted = nn.functional.interpolate(logits, (64, 64), mode="bilinear").argmax(1)
    print(f"held-out pixel accuracy {(predicted == held_out.labels).float().mean():.3f}")


if __name__ == "__main__":
    main()
