"""The forward of both losses: from embeddings to the loss, and to the bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pixcontrast import _check as check
from pixcontrast._bank.new_entries import DrawnPixels, NewEntries
from pixcontrast._bank.ring import QUEUES
from pixcontrast._distributed import ranks_of
from pixcontrast._info_nce.dispatch import Result, reduced_loss
from pixcontrast._info_nce.problem import Problem
from pixcontrast._loss.batch import Anchors, Batch
from pixcontrast._loss.contrast_set import ContrastSet, contrast_set, split_by_image
from pixcontrast._loss.gather import JointCall, Labelled
from pixcontrast._loss.options import LossOptions
from pixcontrast._loss.reports import MAX_CLASSES, Call, Stats, compute_stats
from pixcontrast._loss.sampled_rows import sampled_rows, valid_rows
from pixcontrast._pixels import maps
from pixcontrast._tensors import IGNORED, mark_ignored
from pixcontrast._triton import choose
from pixcontrast.bank import MemoryBank
from pixcontrast.samplers import AnchorSample, check_sample, draw_seed


class ContrastLoss(LossOptions):
    """Base class of the losses. A subclass defines which entries the batch contributes."""

    _call: Call | None = None

    @property
    def stats(self) -> Stats | None:
        """Statistics of the last call, or None before the first."""
        return None if self._call is None else compute_stats(self._call)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickles and copies, without data of a call."""
        return {name: value for name, value in self.__dict__.items() if name != "_call"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ContrastLoss:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._call = tree_map_only(Tensor, fn, self._call)
        return self

    def forward(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_anchors: bool = False,
    ) -> Tensor | tuple[Tensor, AnchorSample]:
        check.check_flag("return_anchors", return_anchors)
        batch = self._prepare(emb, labels, preds, weight, generator)
        bank_to_update = self._bank_to_update()
        sample = self.anchor_sampler(
            batch.labels, batch.preds, ignore_index=self.ignore_index, generator=generator
        )
        sample = check_sample(sample, batch.labels.numel(), validate=self.validate)
        seed = draw_seed(self.negative_sampler, sample.labels.device, generator)
        drawn = self._draw_for_bank(batch, bank_to_update, generator)
        anchors, new_entries = self._embed(batch, sample.indices, sample.labels, drawn)
        contrast, result = self._contrast(batch, anchors, new_entries, seed)
        loss = self._reduce(result.loss, len(anchors.labels))
        if bank_to_update is not None and new_entries is not None:
            bank_to_update._store(new_entries)
        self._warnings.see_logits(preds, self.ignore_index)
        if self.denominator == "negatives" and contrast.shards is None:
            of_contrast = [labels for _, labels in contrast.tensors]
            self._warnings.see_labels(anchors.labels, of_contrast, anchors.images)
        self._call = self._record(batch, sample, anchors, contrast, result)
        return (loss, sample) if return_anchors else loss

    def _prepare(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None,
        weight: Tensor | None,
        generator: torch.Generator | None,
    ) -> Batch:
        """Check the arguments, resize them to the features, and mark ignored labels."""
        if self.bank is not None and getattr(self, "_is_replica", False):
            raise RuntimeError(
                f"{type(self).__name__}: expected one call for the whole batch, which the bank "
                f"takes in; got a call by a replica of nn.DataParallel (wrap the network only, and "
                f"call the loss with its outputs; or use DistributedDataParallel)"
            )
        emb = maps.check_feature_map("emb", emb, "D" if self.projection is None else "C")
        labels = maps.check_labels(labels, emb)
        preds = None if preds is None else maps.check_predictions(preds, emb)
        weight = None if weight is None else maps.check_pixel_weight(weight, emb)
        check.check_generator(generator, emb.device)
        if "image" in self.contrast_with and emb.ndim == 2:
            expected = '(B, D, *S) with contrast_with=("image",), which points do not have'
            check.refuse("emb", expected, emb.shape)
        if self.bank is not None:
            if self.projection is None:
                self.bank.check_fits(emb)
            if check.values_can_be_seen(labels) or self.validate:
                counted = labels
                if weight is not None:
                    resized = maps.flat_map(weight, labels.shape[1:]).reshape(labels.shape)
                    counted = labels[resized != 0]
                self.bank.check_label_range(counted)
        features = maps.as_map(emb)
        size = features.shape[2:]
        weight = None if weight is None else maps.flat_map(weight, size)
        num_classes = None if self.bank is None else self.bank.num_classes
        options = size, self.ignore_index, num_classes
        marked, preds = maps.flat_maps(labels, preds, weight, *options)
        return Batch(features, self.projection, marked, preds, weight)

    def _bank_to_update(self) -> MemoryBank | None:
        """Return the bank if this call updates it. Raise or warn if the update is not allowed."""
        is_training = self.training and torch.is_grad_enabled()
        if self.bank is None or not (self.update_bank and is_training):
            return None
        self.bank.guard.check_outside_backward()
        self.bank.guard.claim(self)
        return self.bank

    @torch.no_grad()
    def _draw_for_bank(
        self, batch: Batch, bank_to_update: MemoryBank | None, generator: torch.Generator | None
    ) -> DrawnPixels | None:
        """Draw the pixels of the bank's new entries, if the call needs these entries."""
        bank = self.bank
        if bank is None or (bank_to_update is None and not self._contrasts_drawn_regions()):
            return None
        return bank._entry_maker.draw_pixels(
            batch.features, batch.labels, batch.embed_chunk(), generator
        )

    def _embed(
        self, batch: Batch, indices: Tensor, labels: Tensor, drawn: DrawnPixels | None
    ) -> tuple[Anchors, NewEntries | None]:
        """Embed the sampled pixels and those that the bank stores.

        Embeddings that are no longer needed are freed on return, before the loss needs memory.
        """
        projection, bank = batch.projection, self.bank
        if projection is None:
            vectors, labels = sampled_rows(
                batch.features,
                indices,
                labels,
                self.ignore_index,
                normalize=self.normalize,
                backend=self.backend,
            )
            new_entries = self._new_entries(batch, None, drawn)
        else:
            labels = mark_ignored(labels, self.ignore_index)
            vectors, rows = batch.project(projection, indices, labels != IGNORED, drawn)
            if bank is not None:
                bank.check_fits(vectors, "the output of projection")
            new_entries = self._new_entries(batch, rows, drawn)
            vectors = valid_rows(vectors, labels, normalize=self.normalize)
        weight = None if batch.weight is None else batch.weight.flatten()[indices]
        images = None
        if "image" in self.contrast_with:
            images = indices // max(batch.labels.shape[1], 1)
        return Anchors(vectors, labels, weight, images), new_entries

    @torch.no_grad()
    def _new_entries(
        self, batch: Batch, rows: Tensor | None, drawn: DrawnPixels | None
    ) -> NewEntries | None:
        """Make the new entries from the projected rows, or without a projection from the map."""
        if self.bank is None or drawn is None:
            return None
        maker = self.bank._entry_maker
        if rows is None:
            return maker.entries_at(batch.features.detach(), drawn)
        return maker.entries_of(rows, drawn)

    def _contrasts_drawn_regions(self) -> bool:
        """Whether `"batch"` consists of regions of pixels that are drawn for the bank."""
        return False

    def _batch_entries(self, batch: Batch, new_entries: NewEntries | None) -> Labelled | None:
        """Return the entries of `"batch"`, or None if these are the anchors."""
        return None

    def _contrast(
        self,
        batch: Batch,
        anchors: Anchors,
        new_entries: NewEntries | None,
        seed: Tensor | None,
    ) -> tuple[ContrastSet, Result]:
        """Collect the contrast entries and compute the loss of the anchors against them."""
        entries = None
        if "batch" in self.contrast_with:
            entries = self._batch_entries(batch, new_entries)
        num_images = batch.labels.shape[0]
        joint = self._joint_call(anchors, entries, num_images)
        if joint is not None:
            anchors, num_images = joint.pad_anchors(anchors), joint.num_images
        gathered = joint if self.gather else None
        contrast = contrast_set(self.contrast_with, anchors, entries, self.bank, gathered)
        problem = Problem.of(
            anchors.vectors,
            anchors.labels,
            contrast.tensors,
            form=choose(self.backend, anchors.vectors),
            temperature=self.temperature,
            denominator=self.denominator,
            negative_sampler=self.negative_sampler,
            seed=seed,
            unit_length=self.normalize,
            shards=contrast.shards,
        )
        problems = [problem]
        if anchors.images is not None:
            problems = split_by_image(problem, anchors.images, num_images)
        ranks = None if gathered is None else gathered.ranks
        return contrast, reduced_loss(problems, anchors.weight, self.reduction, ranks)

    def _joint_call(
        self, anchors: Anchors, entries: Labelled | None, num_images: int
    ) -> JointCall | None:
        """Exchange sizes with the other ranks, if this call needs them; else return None."""
        ranks = ranks_of(self.process_group) if self.gather else None
        bank = self.bank
        if bank is not None and bank.sharded and set(self.contrast_with) & set(QUEUES):
            bank_ranks = bank.ranks
            if self.gather and ranks != bank_ranks:
                expected = "that of the sharded bank with gather=True"
                check.refuse("process_group", expected, "a different one")
            ranks = bank_ranks
        if ranks is None:
            return None
        num_entries = 0 if entries is None else len(entries.labels)
        call = f"{type(self).__name__}, {self._shared_options()}"
        return JointCall.exchange_sizes(ranks, call, anchors.vectors, num_entries, num_images)

    def _reduce(self, loss: Tensor, num_anchors: int) -> Tensor:
        """Remove padding from unreduced losses, and apply the factor of the base temperature."""
        if self.reduction == "none":
            loss = loss[:num_anchors]
        if self.base_temperature is not None:
            loss = loss * (self.temperature / self.base_temperature)
        return loss

    def _record(
        self,
        batch: Batch,
        sample: AnchorSample,
        anchors: Anchors,
        contrast: ContrastSet,
        result: Result,
    ) -> Call:
        """Keep the data from which `stats` are computed."""
        bank = self.bank
        return Call(
            labels=batch.labels,
            indices=sample.indices,
            sampled=anchors.labels,
            preds=None if batch.preds is None else batch.preds.flatten()[sample.indices],
            anchors=anchors.vectors.detach(),
            has_positive=result.has_positive[: len(anchors.labels)],
            batch_labels=contrast.batch_labels,
            bank_entries=contrast.bank_entries
            if result.num_shard_entries is None
            else result.num_shard_entries,
            written=None if bank is None else bank._copy_counts(QUEUES),
            slots=0 if bank is None else bank.num_classes * sum(map(bank.slots, QUEUES)),
            num_classes=MAX_CLASSES if bank is None else bank.num_classes,
        )
