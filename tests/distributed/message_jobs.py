"""What ranks do in the tests of messages and memory."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._ranks.costs import Step
from benchmarks._ranks.measurements import bank_of, counted_messages
from pixcontrast import HardNegativeSampler, PixelContrastLoss, RandomAnchorSampler

DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def make_loss(
    group: Any, step: Step, negative_sampler: HardNegativeSampler | None = None
) -> PixelContrastLoss:
    bank = bank_of(step, DTYPES[step.bank_bytes], group)
    sampler = RandomAnchorSampler(max_anchors=step.anchors)
    return PixelContrastLoss(
        anchor_sampler=sampler,
        negative_sampler=negative_sampler,
        bank=bank,
        gather=step.gather,
        process_group=group,
    )


def draw(step: Step, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    emb = torch.randn(images, step.dim, 6, 6, dtype=DTYPES[step.anchor_bytes])
    return emb.requires_grad_(), torch.randint(0, step.num_classes, (images, 6, 6))


def count(
    group: Any,
    rank: int,
    step: Step,
    images: list[int],
    negative_sampler: HardNegativeSampler | None = None,
) -> list[tuple[str, int]]:
    """The messages of the second of two steps of forward and backward."""
    loss = make_loss(group, step, negative_sampler)
    loss(*draw(step, images[rank])).backward()
    emb, labels = draw(step, images[rank])
    with counted_messages(step.ranks) as found:
        loss(emb, labels).backward()
    return [(message.collective, message.parcel) for message in found]


def fill(group: Any, rank: int, step: Step, updates: int) -> tuple[int, int]:
    """How many entries the bank of a rank holds after some updates, and the bytes it takes."""
    bank = make_loss(group, step).bank
    assert bank is not None
    for _ in range(updates):
        emb, labels = draw(step, step.images)
        bank.update(emb.detach(), labels)
    size = sum(buffer.untyped_storage().nbytes() for buffer in bank.buffers())
    return int(bank.pixel_count.sum() + bank.region_count.sum()), size


def run_text(group: Any, rank: int, text: str) -> None:
    """A program, as a page of the docs has it."""
    exec(compile(text, "page", "exec"), {})
