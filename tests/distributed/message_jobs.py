"""What ranks do in the tests of messages and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed

from benchmarks._ranks.costs import Message, Step
from benchmarks._ranks.measurements import bank_of
from pixcontrast import HardNegativeSampler, PixelContrastLoss, RandomAnchorSampler

COLLECTIVES = {
    "all_gather_into_tensor": "all-gather",
    "all_gather_single": "all-gather",  # its name in newer versions of PyTorch
    "all_to_all_single": "all-to-all",
    "all_reduce": "sum",
}
UNUSED = (
    *("all_gather", "all_gather_object", "all_to_all", "barrier", "broadcast", "gather"),
    *("broadcast_object_list", "irecv", "isend", "recv", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "send"),
)
"""Collectives that the library does not use; they are counted by name, without a size."""
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


def with_default_device(group: Any, rank: int, step: Step, device: str | None) -> list[Tensor]:
    """The loss, its gradient and the bank of a step on the CPU, with another default device."""
    torch.manual_seed(rank)
    loss, (emb, labels) = make_loss(group, step), draw(step, step.images)
    torch.set_default_device(device)
    try:
        value = loss(emb, labels)
        value.backward()
    finally:
        torch.set_default_device(None)
    assert loss.bank is not None
    assert emb.grad is not None
    return [value.detach(), emb.grad, *loss.bank.buffers()]


def run_text(group: Any, rank: int, text: str) -> None:
    """A program, as a page of the docs has it."""
    exec(compile(text, "page", "exec"), {})


@contextmanager
def counted_messages(ranks: int) -> Iterator[list[Message]]:
    """Record the collectives that are called inside the context, in order."""
    found: list[Message] = []
    is_outer = True

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal is_outer
            if not is_outer:  # a collective implemented by another one
                return original(*arguments, **options)
            kind, parcel = COLLECTIVES.get(name, name), 0
            if name in COLLECTIVES:
                sent: Tensor = arguments[0 if kind == "sum" else 1]
                parcel = sent.nbytes // (ranks if kind == "all-to-all" else 1)
            found.append(Message("", kind, parcel))
            is_outer = False
            try:
                return original(*arguments, **options)
            finally:
                is_outer = True

        return call

    with ExitStack() as stack:
        for name in (*COLLECTIVES, *UNUSED):
            if hasattr(distributed, name):
                replaced = counted(name, getattr(distributed, name))
                stack.enter_context(patch.object(distributed, name, replaced))
        yield found
