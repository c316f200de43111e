"""The contrast part of a training step: ours, its loss alone, the authors'; and ours in parts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.authors_step import IGNORE_INDEX, AuthorsStep, Queues
from benchmarks.batches import Batch, BatchShape, draw_bank
from benchmarks.timing import now
from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast.functional import info_nce

TEMPERATURE = 0.1
BASE_TEMPERATURE = 0.07
PIXELS_PER_IMAGE = 10
"""The authors' settings; temperatures are those of their configuration without memory."""

CASES = ("batch", "bank", "mining")
WAYS = ("step", "loss", "authors", "unmined")
PARTS = ("labels and predictions", "sampler", "anchors and loss", "bank update", "backward")
Run = Callable[[], object]


class Case:
    """One case on one shape: what each of its ways is, and how many anchors it takes."""

    def __init__(
        self,
        shape: BatchShape,
        case: str,
        device: torch.device,
        *,
        bank_dtype: torch.dtype = torch.float32,
        full_logits: bool = False,
    ) -> None:
        self.shape = shape
        self.case = case
        self.device = device
        self.bank_dtype = bank_dtype
        self.batch = Batch.draw(shape, device)
        self.logits = self.batch.logits
        if full_logits:
            # Of the size of the image; the authors' code cannot take these.
            for dim in (2, 3):
                self.logits = self.logits.repeat_interleave(shape.stride, dim=dim)

    def ways(self) -> tuple[str, ...]:
        """What is compared: the authors' released code has no mining to compare with."""
        other = "unmined" if self.case == "mining" else "authors"
        return ("step", "loss", other)

    def way(self, name: str) -> Run:
        """One run of a way, from what the network gives to the gradient of the embeddings."""
        if name == "loss":
            return self.own_loss()
        if name == "authors":
            return self.authors_step()
        return self.our_step(self.criterion(mined=self.case == "mining" and name == "step"))

    def criterion(self, mined: bool) -> PixelContrastLoss:
        """Our loss; with a bank, its entries are all there is to contrast with, as the authors'."""
        bank = None if self.case == "batch" else self.full_bank()
        return PixelContrastLoss(
            temperature=TEMPERATURE,
            base_temperature=BASE_TEMPERATURE,
            ignore_index=IGNORE_INDEX,
            anchor_sampler=HardAnchorSampler(
                max_anchors=self.shape.max_anchors, max_views=self.shape.max_views
            ),
            negative_sampler=HardNegativeSampler() if mined else None,
            bank=bank,
            contrast_with=("batch",) if bank is None else ("pixels", "regions"),
        )

    def our_step(self, criterion: PixelContrastLoss) -> Run:
        """Labels, sampling, loss, bank update, and backward to the embedding map."""
        batch = self.batch
        return lambda: torch.autograd.grad(
            criterion(batch.emb, batch.labels, self.logits), batch.emb
        )

    def own_loss(self) -> Run:
        """`info_nce` forward and backward alone, of anchors and entries as the step has them."""
        criterion = self.criterion(mined=self.case == "mining")
        batch = self.batch
        with torch.no_grad():
            _, sample = criterion(batch.emb, batch.labels, self.logits, return_anchors=True)
        rows = batch.emb.detach().movedim(1, -1).flatten(0, -2)[sample.indices]
        anchors = rows.requires_grad_()
        bank = criterion.bank
        pieces = (
            [(None, None)] if bank is None else [bank.entries(q) for q in criterion.contrast_with]
        )
        entries: list[Tensor | None] = [vectors for vectors, _ in pieces]
        entry_labels: list[Tensor | None] = [labels for _, labels in pieces]

        def run() -> object:
            loss = info_nce(
                anchors,
                sample.labels,
                entries,
                entry_labels,
                temperature=TEMPERATURE,
                negative_sampler=criterion.negative_sampler,
                ignore_index=IGNORE_INDEX,
            )
            return torch.autograd.grad(loss, anchors)

        return run

    def authors_step(self) -> Run:
        """The same of the released code. Its enqueuing stands before the backward pass, as ours."""
        step = self.authors()
        batch = self.batch
        queues = None
        if self.case != "batch":
            pixels, regions = draw_bank(self.shape, self.device)
            queues = Queues.of(segments=regions, pixels=pixels)

        def run() -> object:
            loss = step.loss(batch.emb, batch.labels, batch.logits, queues)
            if queues is not None:
                step.enqueue(batch.emb.detach(), batch.labels, queues)
            return torch.autograd.grad(loss, batch.emb)

        return run

    def authors(self) -> AuthorsStep:
        """The authors' step with the options of ours."""
        return AuthorsStep(
            temperature=TEMPERATURE,
            base_temperature=BASE_TEMPERATURE,
            max_samples=self.shape.max_anchors,
            max_views=self.shape.max_views,
            pixels_per_image=PIXELS_PER_IMAGE,
        )

    def full_bank(self) -> MemoryBank:
        """A bank whose every slot is written: what every step after the first epoch meets."""
        shape = self.shape
        bank = MemoryBank(
            shape.num_classes,
            shape.dim,
            pixel_slots=shape.slots,
            region_slots=shape.slots,
            pixels_per_image=PIXELS_PER_IMAGE,
            ignore_index=IGNORE_INDEX,
            dtype=self.bank_dtype,
        ).to(self.device)
        pixels, regions = draw_bank(shape, self.device)
        bank.pixels.copy_(pixels)
        bank.regions.copy_(regions)
        for count in (bank.pixel_count, bank.region_count):
            count.fill_(shape.slots)
        return bank

    def anchors(self) -> dict[str, int]:
        """How many anchors each step takes: the authors leave small groups out."""
        batch, shape = self.batch, self.shape
        with torch.no_grad():
            _, sample = self.criterion(mined=False)(
                batch.emb, batch.labels, self.logits, return_anchors=True
            )
        labels = batch.labels[:, :: shape.stride, :: shape.stride].flatten(1)
        views, _ = self.authors().sample(
            batch.emb.new_zeros(*labels.shape, 1), labels, batch.logits.argmax(dim=1).flatten(1)
        )
        ours = int((sample.labels != IGNORE_INDEX).sum())
        return {"step": ours, "authors": views.shape[0] * views.shape[1]}

    def clock_parts(self) -> Callable[[], dict[str, float]]:
        """One step of ours a call, to the seconds of each of `PARTS`.

        It is cut where the loss calls its sampler and its bank. Checks of arguments count to what
        they stand before; sampled pixels are gathered and normalised in "anchors and loss".
        """
        criterion = self.criterion(mined=self.case == "mining")
        bank, batch, device = criterion.bank, self.batch, self.device

        def run() -> dict[str, float]:
            seconds = dict.fromkeys(PARTS, 0.0)
            last = now(device)

            def mark(ended: str) -> None:
                nonlocal last
                this = now(device)
                seconds[ended] += this - last
                last = this

            def marked(call: Callable[..., Any], before: str, itself: str) -> Callable[..., Any]:
                def run_between(*arguments: Any, **options: Any) -> Any:
                    mark(before)
                    result = call(*arguments, **options)
                    mark(itself)
                    return result

                return run_between

            with ExitStack() as stack:
                sampler = marked(criterion.anchor_sampler, *PARTS[:2])
                stack.enter_context(patch.object(criterion, "anchor_sampler", sampler))
                if bank is not None:
                    update = marked(bank._add_batch, *PARTS[2:4])
                    stack.enter_context(patch.object(bank, "_add_batch", update))
                loss = criterion(batch.emb, batch.labels, self.logits)
            mark("anchors and loss")
            torch.autograd.grad(loss, batch.emb)
            mark("backward")
            return seconds

        return run
