"""The contrast part of a training step: ours, its loss alone, the authors'; and ours in parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks._measure.device import replayed
from benchmarks._measure.timers import Run
from benchmarks._ways.authors_step import IGNORE_INDEX, AuthorsStep, Queues
from benchmarks._ways.batches import Batch, BatchShape, draw_bank, fill_bank
from benchmarks._ways.formulas import our_loss
from benchmarks._ways.problem import TEMPERATURE
from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast._bank.new_entries import EntryMaker

T = TypeVar("T")
BASE_TEMPERATURE, PIXELS_PER_IMAGE = AuthorsStep.base_temperature, AuthorsStep.pixels_per_image

CASES = ("bank", "batch", "mining")
WAYS = ("step", "replayed", "loss", "authors", "authors autocast", "unmined")
PARTS = ("labels and predictions", "sampler", "anchors and loss", "bank update", "backward")


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
        if self.case == "mining":
            return (*ours, "unmined")
        return (*ours, "authors", *(("authors autocast",) * self.as_on_gpu))

    def way(self, name: str) -> Run:
        """Return one implementation, from the network's outputs to the embeddings' gradient."""
        if name == "replayed":
            return replayed(self.way("step"), self.device)
        if name == "authors":
            return self._authors_step()
        if name == "authors autocast":
            return self._under_autocast(self._authors_step())
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

    def anchors(self) -> dict[str, int]:
        """Return how many anchors each step takes: the authors leave small groups out."""
        batch, shape = self.batch, self.shape
        with torch.no_grad():
            _, sample = self.criterion(may_mine=False)(
                batch.emb, batch.labels, self.logits, return_anchors=True
            )
        labels = batch.labels[:, :: shape.stride, :: shape.stride].flatten(1)
        views, _ = self.authors.sample(
            batch.emb.new_zeros(*labels.shape, 1), labels, batch.logits.argmax(dim=1).flatten(1)
        )
        ours = int((sample.labels != IGNORE_INDEX).sum())
        return {"step": ours, "authors": views.shape[0] * views.shape[1]}

    def clock_parts(self) -> Callable[[], dict[str, float]]:
        """Return a function that makes one step of ours and returns the seconds of each part.

        The step is cut where the loss calls its sampler and its bank.
        """
        criterion = self.criterion()
        bank, batch = criterion.bank, self.batch

        def run() -> dict[str, float]:
            seconds = dict.fromkeys(PARTS, 0.0)
            last = time.perf_counter()

            def mark(ended: str) -> None:
                nonlocal last
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                seconds[ended] += time.perf_counter() - last
                last = time.perf_counter()

            def marked(owner: object, name: str, before: str, itself: str) -> Any:
                call = getattr(owner, name)

                def run_between(*arguments: Any, **options: Any) -> Any:
                    mark(before)
                    result = call(*arguments, **options)
                    mark(itself)
                    return result

                return patch.object(owner, name, run_between)

            with ExitStack() as stack:
                stack.enter_context(marked(criterion, "anchor_sampler", *PARTS[:2]))
                entries = ((EntryMaker, "draw_pixels"), (EntryMaker, "entries_of"))
                for owner, name in (*entries, (bank, "_store")) if bank else ():
                    stack.enter_context(marked(owner, name, *PARTS[2:4]))
                loss = criterion(batch.emb, batch.labels, self.logits)
            mark("anchors and loss")
            torch.autograd.grad(loss, batch.emb)
            mark("backward")
            return seconds

        return self._as_trained(run)

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

    def _as_trained(self, run: Callable[[], T]) -> Callable[[], T]:
        """Return a run of ours as training runs it: under autocast on a GPU."""
        return self._under_autocast(run) if self.as_on_gpu else run

    def _under_autocast(self, run: Callable[[], T]) -> Callable[[], T]:
        def under_autocast() -> T:
            # A cached conversion must not outlive the capture of a CUDA graph.
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
                return run()

        return under_autocast
