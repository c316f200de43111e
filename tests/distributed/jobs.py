"""What ranks do in tests: each function is called on every rank, with its process group first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler, RegionContrastLoss

LOSSES = {"pixels": PixelContrastLoss, "regions": RegionContrastLoss}
EVERY_PIXEL = RandomAnchorSampler(max_anchors=10_000, max_views=10_000)
CLASSES = 4


class Batch:
    """A global batch; `share` is what a rank has of it."""

    def __init__(self, seed: int, dtype: torch.dtype, images: int = 6, dim: int = 8) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.emb = torch.randn(images, dim, 3, 4, generator=generator, dtype=dtype)
        self.labels = torch.randint(-1, CLASSES, (images, 6, 8), generator=generator)
        # One image has nothing, and one class stands in a single image.
        self.labels[images // 2] = 255
        self.labels[: images - 1][self.labels[: images - 1] == CLASSES - 1] = 0
        self.weight = torch.rand(images, 6, 8, generator=generator)

    def share(self, sizes: list[int], rank: int) -> tuple[Tensor, Tensor, Tensor]:
        start = sum(sizes[:rank])
        part = slice(start, start + sizes[rank])
        return self.emb[part], self.labels[part], self.weight[part]


def make_bank(group: Any, dtype: torch.dtype, **options: Any) -> MemoryBank:
    """A bank that takes every pixel."""
    return MemoryBank(CLASSES, 8, pixels_per_image=12, dtype=dtype, process_group=group, **options)


def loss_step(
    group: Any,
    rank: int,
    kind: str,
    sizes: list[int],
    dtype: torch.dtype,
    *,
    bank: dict[str, Any] | None = None,
    weighted: bool = False,
    steps: int = 1,
    gather: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Losses of some steps, the last one's gradient of the embeddings, and the bank after it."""
    memory = None if bank is None else make_bank(group, dtype, **bank)
    loss = LOSSES[kind](
        anchor_sampler=EVERY_PIXEL, bank=memory, gather=gather, process_group=group, **options
    )
    losses = []
    for step in range(steps):
        emb, labels, weight = Batch(step, dtype).share(sizes, rank)
        emb = emb.clone().requires_grad_()
        value = loss(emb, labels, weight=weight if weighted else None)
        (gradient,) = torch.autograd.grad(value, emb)
        losses.append(value.detach())
    state = {} if memory is None else memory.state_dict()
    entries = loss.stats.entries if loss.stats is not None else None
    return {"losses": losses, "gradient": gradient, "bank": state, "entries": entries}
