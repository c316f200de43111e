"""The options of both losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pixcontrast import _check as check
from pixcontrast._distributed import GroupReference
from pixcontrast._info_nce.problem import Denominator
from pixcontrast._info_nce.reduction import Reduction
from pixcontrast._loss.contrast_set import resolve_sources
from pixcontrast._loss.warn import LabelWarnings
from pixcontrast._triton import Backend
from pixcontrast.bank import MemoryBank
from pixcontrast.functional import DENOMINATORS, REDUCTIONS, check_backend
from pixcontrast.mining import HardNegativeSampler
from pixcontrast.samplers import AnchorSampler, HardAnchorSampler


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
        self._warnings = LabelWarnings()

    @property
    def process_group(self) -> Any:
        return self._group.group

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
