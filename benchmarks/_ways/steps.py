"""The contrast part of a training step: ours, its loss alone, and the authors'."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._measure.device import replayed
from benchmarks._measure.timers import Run
from benchmarks._ways.authors_step import IGNORE_INDEX, AuthorsStep, Queues
from benchmarks._ways.batches import Batch, BatchShape, draw_bank, fill_bank
from benchmarks._ways.formulas import our_loss
from benchmarks._ways.problem import TEMPERATURE
from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss

BASE_TEMPERATURE, PIXELS_PER_IMAGE = AuthorsStep.base_temperature, AuthorsStep.pixels_per_image

CASES = ("bank", "batch", "mining")


class StepCase:
    """One case on one shape: contrast with the batch, the bank, or the bank under mining.

    As on a GPU, the bank is in bfloat16, logits have the size of the image, and ours runs under
    autocast to bfloat16; else all is in float32, and logits have the size of the embedding.
    """

    def __init__(
        self, shape: BatchShape, case: str, device: torch.device, *, as_on_gpu: bool = False
    ) -> None:
        self.shape = shape
        self.case = case
        self.device = device
        self.as_on_gpu = as_on_gpu
        self.batch = Batch.draw(shape, device)
        self.authors = AuthorsStep(max_samples=shape.max_anchors, max_views=shape.max_views)
        self.logits = self.batch.logits
        if as_on_gpu:
            # The authors' code cannot take logits of this size.
            for dim in (2, 3):
                self.logits = self.logits.repeat_interleave(shape.stride, dim=dim)

    def ways(self) -> tuple[str, ...]:
        """Return what is compared. The authors' released code has no mining."""
        ours = ("step", *(("replayed",) * self.as_on_gpu), "loss")
        return (*ours, "unmined" if self.case == "mining" else "authors")

    def way(self, name: str) -> Run:
        """Return one implementation, from the network's outputs to the embeddings' gradient."""
        if name == "replayed":
            return replayed(self.way("step"), self.device)
        if name == "authors":
            return self._authors_step()
        if name == "loss":
            return self._as_trained(self._own_loss())
        criterion, batch = self.criterion(may_mine=name != "unmined"), self.batch
        return self._as_trained(
            lambda: torch.autograd.grad(criterion(batch.emb, batch.labels, self.logits), batch.emb)
        )

    def criterion(self, may_mine: bool = True) -> PixelContrastLoss:
        """Return our loss; with a bank, it contrasts with the bank's entries alone, as theirs."""
        shape, bank = self.shape, None
        if self.case != "batch":
            bank = MemoryBank(
                shape.num_classes,
                shape.dim,
                pixel_slots=shape.slots,
                region_slots=shape.slots,
                pixels_per_image=PIXELS_PER_IMAGE,
                ignore_index=IGNORE_INDEX,
                dtype=torch.bfloat16 if self.as_on_gpu else torch.float32,
            )
            bank = fill_bank(bank, shape).to(self.device)
        mined = may_mine and self.case == "mining"
        return PixelContrastLoss(
            temperature=TEMPERATURE,
            base_temperature=BASE_TEMPERATURE,
            ignore_index=IGNORE_INDEX,
            anchor_sampler=HardAnchorSampler(
                max_anchors=shape.max_anchors, max_views=shape.max_views
            ),
            negative_sampler=HardNegativeSampler() if mined else None,
            bank=bank,
            contrast_with=("batch",) if bank is None else ("pixels", "regions"),
        )

    def _own_loss(self) -> Run:
        """Return the loss alone, forward and backward, of the step's anchors and entries."""
        criterion, batch = self.criterion(), self.batch
        with torch.no_grad():
            _, sample = criterion(batch.emb, batch.labels, self.logits, return_anchors=True)
        rows = batch.emb.detach().movedim(1, -1).flatten(0, -2)[sample.indices]
        anchors = rows.requires_grad_()
        queues: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
        if criterion.bank is not None:
            queues = [criterion.bank.entries(queue) for queue in criterion.contrast_with]
        given = (anchors, sample.labels, *map(list, zip(*queues, strict=True)))

        def run() -> object:
            loss = our_loss(
                *given,
                backend="auto",
                negative_sampler=criterion.negative_sampler,
                unit_length=True,
                ignore_index=IGNORE_INDEX,
            )
            return torch.autograd.grad(loss, anchors)

        return run

    def _authors_step(self) -> Run:
        """Return the same of the released code; it enqueues before the backward, as ours does."""
        batch, queues = self.batch, None
        if self.case != "batch":
            pixels, regions = (drawn.to(self.device) for drawn in draw_bank(self.shape))
            queues = Queues.of(segments=regions, pixels=pixels)

        def run() -> object:
            loss = self.authors.loss(batch.emb, batch.labels, batch.logits, queues)
            if queues is not None:
                self.authors.enqueue(batch.emb.detach(), batch.labels, queues)
            return torch.autograd.grad(loss, batch.emb)

        return run

    def _as_trained(self, run: Run) -> Run:
        """Return a run of ours as training runs it: under autocast on a GPU."""

        def under_autocast() -> object:
            # A cached conversion must not outlive the capture of a CUDA graph.
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
                return run()

        return under_autocast if self.as_on_gpu else run
