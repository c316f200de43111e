"""What the two losses share: options, and the way from embeddings to loss to bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._distributed import GroupReference, pad, ranks_of
from pixcontrast._entries import BatchPiece, entries_of_call
from pixcontrast._equation.backends import Backend
from pixcontrast._equation.problem import Denominator
from pixcontrast._equation.reduction import Reduction
from pixcontrast._labels import mark_ignored
from pixcontrast._loss.gather import Across
from pixcontrast._pixels import (
    as_images,
    flat_map,
    flat_predictions,
    take_pixels,
    unit_length,
)
from pixcontrast._stats import MOST_CLASSES, Call, Stats, describe
from pixcontrast.bank import QUEUES, MemoryBank
from pixcontrast.functional import (
    DENOMINATORS,
    REDUCTIONS,
    check_backend,
    info_nce_of,
)
from pixcontrast.mining import HardNegativeSampler
from pixcontrast.samplers import AnchorSample, AnchorSampler, HardAnchorSampler


class ContrastLoss(nn.Module):
    """What both losses share; a subclass says what the batch itself contributes."""

    contrast_choices: tuple[str, ...]
    bank: MemoryBank | None

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        ignore_index: int = 255,
        anchor_sampler: AnchorSampler | None = None,
        negative_sampler: HardNegativeSampler | None = None,
        bank: MemoryBank | None = None,
        contrast: Sequence[str] | None = None,
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
            check.check_factor(float(temperature), base_temperature)
        check.check_ignore_index(ignore_index)
        check.check_callable("anchor_sampler", anchor_sampler)
        check.check_instance("negative_sampler", negative_sampler, HardNegativeSampler)
        check.check_instance("bank", bank, MemoryBank)
        check.check_choice("denominator", denominator, DENOMINATORS)
        check.check_choice("reduction", reduction, REDUCTIONS)
        for name, flag in (
            ("normalize", normalize),
            ("update_bank", update_bank),
            ("gather", gather),
            ("validate", validate),
        ):
            check.check_flag(name, flag)
        check_backend(backend)
        check.check_process_group(process_group)
        if gather and reduction == "none":
            raise ValueError(
                'reduction: expected "mean" or "sum" beside gather=True, which reduces over the '
                'anchors of all ranks; got "none"'
            )
        if bank is not None and bank.ignore_index != ignore_index:
            raise ValueError(
                f"ignore_index: expected that of the bank, {bank.ignore_index}; got {ignore_index}"
            )
        self.temperature = float(temperature)
        self.base_temperature = base_temperature
        self.ignore_index = ignore_index
        self.anchor_sampler = HardAnchorSampler() if anchor_sampler is None else anchor_sampler
        self.negative_sampler = negative_sampler
        self.bank = bank
        self.contrast = self._resolve_contrast(contrast)
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
        """What the last call did; None before the first."""
        return None if self._call is None else describe(self._call)

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
        self._check_call(emb, labels, preds, weight, generator)
        updated = self._bank_to_update()

        images = as_images(emb)
        num_classes = None if self.bank is None else self.bank.num_classes
        marked = mark_ignored(flat_map(labels, images), self.ignore_index, num_classes)
        classes = None if preds is None else flat_predictions(preds, images)
        sample = self.anchor_sampler(
            marked, classes, ignore_index=self.ignore_index, generator=generator
        )
        anchors, anchor_labels = self._take_anchors(images, sample), sample.labels
        if weight is not None:
            weight = flat_map(weight, images).flatten()[sample.indices]
        batch = self._batch_piece(images, marked) if "batch" in self.contrast else BatchPiece()
        across = self._agree(anchors, batch)
        if across is not None:
            anchors, anchor_labels = across.padded(anchors, anchor_labels)
            weight = None if weight is None else pad(weight, len(anchors))
        entries = entries_of_call(
            self.contrast,
            anchors,
            anchor_labels,
            batch,
            self.bank,
            across if self.gather else None,
            self.ignore_index,
        )
        entries_of_bank = self._written([queue for queue in self.contrast if queue in QUEUES])
        result = info_nce_of(
            anchors,
            anchor_labels,
            entries.vectors,
            entries.labels,
            temperature=self.temperature,
            denominator=self.denominator,
            weight=weight,
            mining=self.negative_sampler,
            generator=generator,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            backend=self.backend,
            unit_length=self.normalize,
            ranks=across.ranks if across is not None and self.gather else None,
            shards=entries.shards,
        )
        loss, has_positive = result.loss, result.has_positive[: len(sample.labels)]
        if self.reduction == "none":
            loss = loss[: len(sample.labels)]
        if result.held is not None:
            entries_of_bank = (result.held,)
        if self.base_temperature is not None:
            loss = loss * (self.temperature / self.base_temperature)
        if updated is not None:
            updated._take_in(images, marked, batch.regions, generator)
        self._call = Call(
            labels=marked,
            indices=sample.indices,
            sampled=mark_ignored(sample.labels, self.ignore_index),
            preds=None if classes is None else classes.flatten()[sample.indices],
            anchors=anchors[: len(sample.labels)].detach(),
            has_positive=has_positive,
            batch_labels=entries.batch_labels,
            bank_entries=entries_of_bank,
            written=self._written(QUEUES),
            slots=0 if self.bank is None else self.bank.num_slots,
            num_classes=MOST_CLASSES if num_classes is None else num_classes,
        )
        return (loss, sample) if return_anchors else loss

    def extra_repr(self) -> str:
        return f"anchor_sampler={self.anchor_sampler!r}, {self._alike()}"

    def _alike(self) -> str:
        """The options that are the same on every rank: all but the sampler, which may be any.

        One that says nothing of itself but its address is another text in each process.
        """
        names = (
            "temperature",
            "base_temperature",
            "ignore_index",
            "negative_sampler",
            "contrast",
            "denominator",
            "normalize",
            "reduction",
            "update_bank",
            "gather",
            "backend",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _batch_piece(self, images: Tensor, labels: Tensor) -> BatchPiece:
        raise NotImplementedError

    def _agree(self, anchors: Tensor, batch: BatchPiece) -> Across | None:
        """What all ranks have to know of each other's sizes, where the call is one of all ranks."""
        ranks = ranks_of(self.process_group) if self.gather else None
        bank = self.bank
        if bank is not None and bank.sharded and set(self.contrast) & set(QUEUES):
            of_bank = bank.ranks
            if self.gather and ranks != of_bank:
                raise ValueError(
                    "process_group: expected that of the sharded bank beside gather=True; got "
                    "another one"
                )
            ranks = of_bank
        if ranks is None:
            return None
        num_entries = 0 if batch.entries is None else len(batch.entries)
        what = f"{type(self).__name__}, {self._alike()}"
        return Across.agreed(ranks, what, anchors, num_entries, self.ignore_index)

    def _written(self, queues: Sequence[str]) -> tuple[Tensor, ...]:
        """() int64 each, how many entries these queues of the bank hold."""
        bank = self.bank
        return () if bank is None else tuple(bank.count(queue).sum() for queue in queues)

    def _take_anchors(self, images: Tensor, sample: AnchorSample) -> Tensor:
        anchors = take_pixels(images, sample.indices)
        # Padding holds pixel 0, whatever that is; zeros in its place say nothing to anyone.
        anchors = torch.where((sample.labels != self.ignore_index)[:, None], anchors, 0.0)
        return unit_length(anchors) if self.normalize else anchors

    def _bank_to_update(self) -> MemoryBank | None:
        if self.bank is None or not self.update_bank:
            return None
        if not (self.training and torch.is_grad_enabled()):
            return None
        self.bank.check_may_update()
        self.bank.claim(self)
        return self.bank

    def _check_call(
        self,
        emb: Tensor,
        labels: Tensor,
        preds: Tensor | None,
        weight: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        check.check_embeddings(emb)
        check.check_pixel_labels(labels, emb)
        if preds is not None:
            check.check_predictions(preds, emb)
        if weight is not None:
            check.check_pixel_weight(weight, emb)
        check.check_generator(generator, emb.device)
        if self.bank is not None:
            self.bank.check_fits(emb)
            if check.values_can_be_seen(labels) or self.validate:
                check.check_label_range(labels, self.ignore_index, self.bank.num_classes)

    def _resolve_contrast(self, contrast: Sequence[str] | None) -> tuple[str, ...]:
        queues = [choice for choice in self.contrast_choices if choice != "batch"]
        if contrast is None:
            bank = self.bank
            filled = [q for q in queues if bank is not None and bank.slots(q)]
            return ("batch", *filled)
        check.check_contrast(contrast, self.contrast_choices)
        for queue in contrast:
            if queue in queues:
                slots = None if self.bank is None else self.bank.slots(queue)
                check.check_queue_is_there(queue, slots)
        return tuple(contrast)
