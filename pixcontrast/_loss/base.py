"""Options and forward of both losses: from embeddings to the loss, and to the bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._bank.new_entries import DrawnPixels, NewEntries
from pixcontrast._bank.ring import QUEUES
from pixcontrast._distributed import GroupReference, ranks_of
from pixcontrast._info_nce.dispatch import Result, reduced_loss
from pixcontrast._info_nce.problem import Denominator, Problem
from pixcontrast._info_nce.reduction import Reduction
from pixcontrast._loss.batch import Anchors, Batch, as_anchors
from pixcontrast._loss.contrast_set import (
    ContrastSet,
    contrast_set,
    resolve_sources,
    split_by_image,
)
from pixcontrast._loss.gather import JointCall, Labelled
from pixcontrast._loss.stats import MAX_CLASSES, Call, Stats, compute_stats
from pixcontrast._tensors import IGNORED, mark_ignored
from pixcontrast._triton import Backend, choose
from pixcontrast.bank import MemoryBank
from pixcontrast.functional import DENOMINATORS, REDUCTIONS, check_backend
from pixcontrast.mining import HardNegativeSampler, draw_seed
from pixcontrast.samplers import AnchorSample, AnchorSampler, HardAnchorSampler


class ContrastLoss(nn.Module):
    """Base class of the losses. A subclass defines which entries the batch contributes."""

    contrast_choices: tuple[str, ...]
    bank: MemoryBank | None
    projection: nn.Module | None

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        ignore_index: int = 255,
        anchor_sampler: AnchorSampler | None = None,
        negative_sampler: HardNegativeSampler | None = None,
        bank: MemoryBank | None = None,
        contrast_with: Sequence[str] | None = None,
        projection: nn.Module | None = None,
        denominator: Denominator = "negatives",
        normalize: bool = True,
        reduction: Reduction = "mean",
        update_bank: bool = True,
        gather: bool = False,
        process_group: Any = None,
        validate: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check.check_temperature("temperature", temperature)
        if base_temperature is not None:
            check.check_temperature("base_temperature", base_temperature)
            base_temperature = float(base_temperature)
            # The factor of the loss must be finite in float32: 0 · inf is NaN.
            if not float(temperature) / base_temperature <= torch.finfo(torch.float32).max:
                expected = "temperature / base_temperature to be a float32"
                found = f"{float(temperature)} / {base_temperature}"
                check.refuse("base_temperature", expected, found)
        check.check_ignore_index(ignore_index)
        is_callable = callable(anchor_sampler) and not isinstance(anchor_sampler, type)
        check.expect(
            anchor_sampler is None or is_callable,
            "anchor_sampler",
            "a callable object such as HardAnchorSampler(...), or None",
            anchor_sampler,
            error=TypeError,
        )
        check.check_instance("negative_sampler", negative_sampler, HardNegativeSampler)
        check.check_instance("bank", bank, MemoryBank)
        check.check_instance("projection", projection, nn.Module)
        check.check_choice("denominator", denominator, DENOMINATORS)
        check.check_choice("reduction", reduction, REDUCTIONS)
        check.check_flag("normalize", normalize)
        check.check_flag("update_bank", update_bank)
        check.check_flag("gather", gather)
        check.check_flag("validate", validate)
        check_backend(backend)
        check.check_process_group(process_group)
        if gather and reduction == "none":
            check.refuse(
                "reduction",
                '"mean" or "sum" with gather=True, which reduces over the anchors of all ranks',
                '"none"',
            )
        if bank is not None and bank.ignore_index != ignore_index:
            expected = f"that of the bank, {bank.ignore_index}"
            check.refuse("ignore_index", expected, str(ignore_index))
        self.temperature = float(temperature)
        self.base_temperature = base_temperature
        self.ignore_index = ignore_index
        self.anchor_sampler = HardAnchorSampler() if anchor_sampler is None else anchor_sampler
        self.negative_sampler = negative_sampler
        self.bank = bank
        self.projection = projection
        self.contrast_with = resolve_sources(contrast_with, self.contrast_choices, bank)
        self.denominator: Denominator = denominator
        self.normalize = normalize
        self.reduction: Reduction = reduction
        self.update_bank = update_bank
        self.gather = gather
        self._group = GroupReference(process_group)
        self.validate = validate
        self.backend: Backend = backend
        self._call: Call | None = None

    @property
    def process_group(self) -> Any:
        return self._group.group

    @property
    def stats(self) -> Stats | None:
        """Statistics of the last call, or None before the first."""
        return None if self._call is None else compute_stats(self._call)

    @overload
    def forward(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_anchors: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_anchors: Literal[True],
    ) -> tuple[Tensor, AnchorSample]: ...

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
        emb, labels, preds, weight = self._check_call(emb, labels, preds, weight, generator)
        bank_to_update = self._bank_to_update()
        batch = self._prepare(emb, labels, preds, weight)
        sample = self.anchor_sampler(
            batch.labels, batch.preds, ignore_index=self.ignore_index, generator=generator
        )
        sampled = check.check_vector_labels(
            "anchor_labels", sample.labels, "the sampled indices", sample.indices
        )
        sampled = mark_ignored(sampled, self.ignore_index)
        seed = draw_seed(self.negative_sampler, sampled.device, generator)
        drawn = self._draw_for_bank(batch, bank_to_update, generator)
        vectors, rows = batch.embed(sample.indices, sampled != IGNORED, drawn)
        new_entries = self._new_entries(rows, drawn)
        anchors = as_anchors(batch, sample.indices, sampled, vectors, normalize=self.normalize)
        contrast, result = self._contrast(batch, anchors, new_entries, seed)
        loss = self._reduce(result.loss, len(anchors.labels))
        if bank_to_update is not None and new_entries is not None:
            bank_to_update._store(new_entries)
        self._call = self._record(batch, sample, anchors, contrast, result)
        return (loss, sample) if return_anchors else loss

    def _check_call(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None,
        weight: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return the tensors without subclasses and channel dimensions of one."""
        if self.bank is not None and getattr(self, "_is_replica", False):
            raise RuntimeError(
                f"{type(self).__name__}: expected one call for the whole batch, which the bank "
                f"takes in; got a call by a replica of nn.DataParallel (wrap the network only, and "
                f"call the loss with its outputs; or use DistributedDataParallel)"
            )
        emb = check.check_feature_map("emb", emb, "D" if self.projection is None else "C")
        labels = check.check_labels(labels, emb)
        preds = None if preds is None else check.check_predictions(preds, emb)
        weight = None if weight is None else check.check_pixel_weight(weight, emb)
        check.check_generator(generator, emb.device)
        if "image" in self.contrast_with and emb.ndim == 2:
            expected = '(B, D, *S) with contrast_with=("image",), which points do not have'
            check.refuse("emb", expected, check.shape_of(emb))
        if self.bank is not None:
            if self.projection is None:
                self.bank.check_fits(emb)
            if check.values_can_be_seen(labels) or self.validate:
                self.bank.check_label_range(labels)
        return emb, labels, preds, weight

    def _bank_to_update(self) -> MemoryBank | None:
        """Return the bank if this call updates it. Raise or warn if the update is not allowed."""
        if self.bank is None or not self.update_bank:
            return None
        if not (self.training and torch.is_grad_enabled()):
            return None
        self.bank.guard.check_outside_backward()
        self.bank.guard.claim(self)
        return self.bank

    def _prepare(
        self, emb: Tensor, labels: Tensor, preds: Tensor | None, weight: Tensor | None
    ) -> Batch:
        num_classes = None if self.bank is None else self.bank.num_classes
        return Batch.of(emb, self.projection, labels, preds, weight, self.ignore_index, num_classes)

    def _draw_for_bank(
        self, batch: Batch, bank_to_update: MemoryBank | None, generator: torch.Generator | None
    ) -> DrawnPixels | None:
        """Draw the pixels of the bank's new entries, if the call needs these entries."""
        bank = self.bank
        if bank is None or (bank_to_update is None and not self._contrasts_drawn_regions()):
            return None
        return bank._draw_pixels(batch.features, batch.labels, batch.embed_chunk(), generator)

    def _new_entries(self, rows: Tensor, drawn: DrawnPixels | None) -> NewEntries | None:
        if self.bank is None or drawn is None:
            return None
        if self.projection is not None:
            self.bank.check_fits(rows, "the output of projection")
        return self.bank._new_entries(rows, drawn)

    def _contrasts_drawn_regions(self) -> bool:
        """Whether `"batch"` consists of the regions that a bank draws pixels for."""
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
        if self.backend == "triton" and self.negative_sampler is not None and contrast.shards:
            expected = '"auto", "tiled" or "dense" for mining over a sharded bank'
            check.refuse("backend", expected, '"triton", whose kernels cannot do that')
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
        if "image" in self.contrast_with:
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
            else (result.num_shard_entries,),
            written=() if bank is None else tuple(bank.count(queue).sum() for queue in QUEUES),
            slots=0 if bank is None else bank.num_classes * sum(map(bank.slots, QUEUES)),
            num_classes=MAX_CLASSES if bank is None else bank.num_classes,
        )

    def extra_repr(self) -> str:
        return f"anchor_sampler={self.anchor_sampler!r}, {self._shared_options()}"

    def _shared_options(self) -> str:
        """Return the options that must be the same on every rank.

        The sampler is not among them: the default representation of an object is its address.
        """
        names = (
            *("temperature", "base_temperature", "ignore_index", "negative_sampler"),
            *("contrast_with", "denominator", "normalize", "reduction", "update_bank", "gather"),
            "backend",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
