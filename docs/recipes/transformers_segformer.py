"""Hugging Face transformers: SegFormer, with pixel contrast in Trainer's `compute_loss_func`.

    python transformers_segformer.py

The contrast branch (head, loss, bank) is attached to the model, so that Trainer moves, optimises
and checkpoints it. It is taken off again before the model is saved, which then is a plain
SegFormer that `from_pretrained` loads.
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


class ContrastBranch(nn.Module):
    """Head and loss, fed with what enters the classifier of SegFormer's decode head."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.head = ProjectionHead(model.config.decoder_hidden_size, 64)
        self.loss = PixelContrastLoss(
            base_temperature=0.07,
            anchor_sampler=HardAnchorSampler(max_anchors=256, max_views=6),
            bank=MemoryBank(CLASSES, 64, pixel_slots=100, region_slots=50, pixels_per_image=2),
        )
        self.features: torch.Tensor | None = None
        self.hook = model.decode_head.classifier.register_forward_pre_hook(self.keep)

    def keep(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.features = inputs[0]

    def forward(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        features, self.features = self.features, None
        return self.loss(self.head(features), labels, logits)


class SegmentationLoss:
    """What Trainer calls with the model's outputs and the labels taken out of the batch."""

    def __init__(self, branch: ContrastBranch, weight: float = 0.1) -> None:
        self.branch = branch
        self.weight = weight

    def __call__(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        logits = nn.functional.interpolate(outputs.logits, labels.shape[-2:], mode="bilinear")
        loss = nn.functional.cross_entropy(logits, labels, ignore_index=255)
        if self.branch.training:
            loss = loss + self.weight * self.branch(labels, outputs.logits)
        # These are means. With gradient_accumulation_steps above 1 divide by it here: Trainer
        # leaves that to a compute_loss_func.
        return loss


class Scenes(Dataset):
    """Squares of four noisy colours, as an image processor would give them."""

    def __init__(self, count: int) -> None:
        labels = torch.randint(CLASSES, (count, 2, 2))
        self.labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
        colours = (
            self.labels[:, None] >> torch.arange(3)[:, None, None] & 1
        )  # the bits of the class
        self.images = colours + 0.6 * torch.randn(colours.shape)

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
    model = SegformerForSemanticSegmentation(config)  # yours: .from_pretrained(...)
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
