"""The options of both losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pixcontrast import _check as check
from pixcontrast._bank.ring import QUEUES
from pixcontrast._distributed import GroupReference
from pixcontrast._info_nce.problem import Denominator
from pixcontrast._info_nce.reduction import Reduction
from pixcontrast._loss.reports import LabelWarnings
from pixcontrast._triton import Backend
from pixcontrast.bank import MemoryBank
from pixcontrast.functional import DENOMINATORS, REDUCTIONS, check_backend
from pixcontrast.samplers import AnchorSampler, HardAnchorSampler, HardNegativeSampler


class LossOptions(nn.Module):
    """The options of a loss, checked."""

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
        self.temperature = check.check_temperature("temperature", temperature)
        self.base_temperature = base_temperature
        if base_temperature is not None:
            base = check.check_temperature("base_temperature", base_temperature)
            # The factor of the loss must be finite in float32: 0 · inf is NaN.
            if not self.temperature / base <= torch.finfo(torch.float32).max:
                expected = "temperature / base_temperature to be a float32"
                check.refuse("base_temperature", expected, f"{self.temperature} / {base}")
            self.base_temperature = base
        self.ignore_index = check.check_ignore_index(ignore_index)
        is_callable = callable(anchor_sampler) and not isinstance(anchor_sampler, type)
        expected = "a callable object such as HardAnchorSampler(...), or None"
        is_sampler = anchor_sampler is None or is_callable
        check.expect(is_sampler, "anchor_sampler", expected, anchor_sampler, error=TypeError)
        self.anchor_sampler = HardAnchorSampler() if anchor_sampler is None else anchor_sampler
        self.negative_sampler = check.check_instance(
            "negative_sampler", negative_sampler, HardNegativeSampler
        )
        self.bank = check.check_instance("bank", bank, MemoryBank)
        self.projection = check.check_instance("projection", projection, nn.Module)
        self.denominator = check.check_choice("denominator", denominator, DENOMINATORS)
        self.reduction = check.check_choice("reduction", reduction, REDUCTIONS)
        self.normalize = check.check_flag("normalize", normalize)
        self.update_bank = check.check_flag("update_bank", update_bank)
        self.gather = check.check_flag("gather", gather)
        self.validate = check.check_flag("validate", validate)
        check_backend(backend)
        self.backend = backend
        self._group = GroupReference(process_group)
        if gather and reduction == "none":
            expected = "with gather=True, which reduces over the anchors of all ranks"
            check.refuse("reduction", f'"mean" or "sum" {expected}', '"none"')
        if bank is not None and bank.ignore_index != self.ignore_index:
            expected = f"that of the bank, {bank.ignore_index}"
            check.refuse("ignore_index", expected, str(ignore_index))
        self.contrast_with = self._sources(contrast_with)
        self._warnings = LabelWarnings()

    def _sources(self, chosen: Any) -> tuple[str, ...]:
        """Check the option `contrast_with`, or replace None by every source that exists."""
        name, choices, bank = "contrast_with", self.contrast_choices, self.bank
        if chosen is None:
            queues = [queue for queue in QUEUES if queue in choices]
            return ("batch", *(queue for queue in queues if bank is not None and bank.slots(queue)))
        expected = "a tuple out of " + ", ".join(map(repr, choices))
        is_sequence = isinstance(chosen, Sequence) and not isinstance(chosen, str)
        if not is_sequence or not all(isinstance(source, str) for source in chosen):
            is_choice = isinstance(chosen, str) and chosen in choices
            fix = f"the fix is ({chosen!r},)" if is_choice else ""
            check.refuse(name, expected, check.kind_of(chosen), fix, TypeError)
        valid = 0 < len(chosen) == len(set(chosen)) and set(chosen) <= set(choices)
        check.expect(valid, name, f"{expected}, each at most once", chosen)
        expected = '"batch" or "image", which are the anchors of the batch and those of one image'
        check.expect(not {"batch", "image"} <= set(chosen), name, expected, chosen)
        for queue in [source for source in chosen if source in QUEUES]:
            if bank is None:
                expected = f"bank=MemoryBank(...) with {queue!r}, which is a queue of the bank"
                fix = f"pass a bank, or leave {queue!r} out"
                check.refuse(name, expected, "bank=None", fix)
            if bank.slots(queue) == 0:
                found = f"{queue!r}, and the bank was built without that queue"
                fix = f"give it slots, or leave {queue!r} out"
                check.refuse(name, "queues of the bank", found, fix)
        return tuple(chosen)

    @property
    def process_group(self) -> Any:
        return self._group.group

    def extra_repr(self) -> str:
        return f"anchor_sampler={self.anchor_sampler!r}, {self._shared_options()}"

    def _shared_options(self) -> str:
        """Return the options that must be the same on every rank.

        The anchor sampler is left out, because the default `repr` of an object has its address.
        """
        names = (
            *("temperature", "base_temperature", "ignore_index", "negative_sampler"),
            *("contrast_with", "denominator", "normalize", "reduction", "update_bank", "gather"),
            "backend",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
