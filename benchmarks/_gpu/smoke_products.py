"""Checks of `info_nce` with the kernels: close to float64, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._measure.command import matmul_precision
from benchmarks._ways.formulas import public_loss, unit_length_loss
from benchmarks._ways.problem import TEMPERATURE
from pixcontrast import HardNegativeSampler

MINING = HardNegativeSampler(strategy="hardest", num_negatives=64, num_positives=16)
KINDS = ("bank", "unit length", "entries", "itself")
"""A bank in order of its classes, by `info_nce` and in the form that the losses call; entries in no
order that require a gradient; the anchors themselves."""


class CheckError(AssertionError):
    """A result is wrong."""


@dataclass(frozen=True)
class Mode:
    """A kind of matrix product.

    Attributes:
        dtype: of anchors and entries.
        precision: how PyTorch multiplies float32.
        loss_bound, gradient_bound: largest error, relative to the largest element of the truth.
    """

    dtype: torch.dtype
    precision: str
    loss_bound: float
    gradient_bound: float


# 16-bit operands have exact products in float32, so that only gradients are rounded: each of two
# operands of the second product and the result, by half an eps. A card truncates operands to TF32,
# each by up to 2^-10 of itself: similarities of unit vectors by up to 2^-9 / τ, a loss by twice
# that, and softmax weights by that factor.
_TF32_BOUND = 2 * 2**-9 / TEMPERATURE
MODES = {
    "bf16": Mode(torch.bfloat16, "highest", 1e-5, 4 * 2**-7),
    "fp16": Mode(torch.float16, "highest", 1e-5, 4 * 2**-10),
    "tf32": Mode(torch.float32, "high", _TF32_BOUND, _TF32_BOUND),
    "float32": Mode(torch.float32, "highest", 1e-5, 1e-5),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the checks run and how large they are; the defaults are those for a card.

    Attributes:
        device: with kernels, or the CPU under the interpreter.
        backend: of what is checked.
        modes: the kinds of product.
        dims: the sizes of an embedding.
        anchors, entries: of what is compared with float64. Against themselves there are as many
            anchors as entries.
        many: entries of a bank where only bits are compared.
        classes, map_size, slots: of a whole step: classes, height and width of the embedding map,
            and slots of each queue of the bank.
        mined_steps: whether a whole step is checked with mining too.
    """

    device: torch.device
    backend: str = "triton"
    modes: tuple[str, ...] = tuple(MODES)
    dims: tuple[int, ...] = (64, 256)
    anchors: int = 512
    entries: int = 4096
    many: int = 190_000
    classes: int = 19
    map_size: int = 32
    slots: int = 256
    mined_steps: bool = True

    @classmethod
    def of(cls, rehearse: bool) -> Setting:
        """What is checked on a card, or a little of it in the interpreter."""
        if not rehearse:
            return cls(device=torch.device("cuda"))
        return cls(device=torch.device("cpu"), modes=("bf16",), dims=(16,), anchors=20, entries=33,
                   many=40, classes=3, map_size=4, slots=5, mined_steps=False)  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Anchors and, unless they are contrasted with themselves, entries, with their labels."""

    anchors: Tensor
    anchor_labels: Tensor
    entries: Tensor | None
    entry_labels: Tensor | None
    kind: str

    @classmethod
    def draw(cls, setting: Setting, mode: str, dim: int, kind: str, entries: int) -> Drawn:
        """Unit vectors, some of them ignored; the same ones for the same arguments."""
        # On the device: a bank is large, and the processors have other work.
        device = setting.device
        generator = torch.Generator(device).manual_seed(0)

        def vectors(rows: int) -> tuple[Tensor, Tensor]:
            labels = torch.randint(setting.classes, (rows,), generator=generator, device=device)
            labels[torch.rand(rows, generator=generator, device=device) < 0.1] = 255
            made = torch.randn(rows, dim, generator=generator, device=device)
            return F.normalize(made, dim=1).to(MODES[mode].dtype), labels

        if kind == "itself":
            return cls(*vectors(min(entries, setting.entries)), None, None, kind)
        anchors, anchor_labels = vectors(setting.anchors)
        made, labels = vectors(entries)
        ordered = labels if kind == "entries" else labels.sort().values
        return cls(anchors, anchor_labels, made, ordered, kind)

    def in_float64(self) -> Drawn:
        """The same numbers in float64."""
        entries = None if self.entries is None else self.entries.double()
        return replace(self, anchors=self.anchors.double(), entries=entries)

    def run(self, backend: str, mining: HardNegativeSampler | None = None) -> list[Tensor]:
        """The loss and its gradients."""
        anchors = self.anchors.clone().requires_grad_()
        entries = self.entries
        leaves = [anchors]
        if entries is not None and self.kind == "entries":
            entries = entries.clone().requires_grad_()
            leaves.append(entries)
        function = unit_length_loss if self.kind == "unit length" else public_loss
        loss = function(anchors, self.anchor_labels, entries, self.entry_labels, backend, mining)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]


Check = Callable[[], dict[str, float]]
"""Returns the errors that it measured; raises `CheckError` where one is too large."""


def product_checks(setting: Setting) -> dict[str, Check]:
    """Every check by its name, the products that are used most first."""
    checks: dict[str, Check] = {}
    for mode in setting.modes:
        for dim in setting.dims:
            for kind in KINDS:
                checks[f"{mode}, D = {dim}, {kind}"] = _beside_float64(setting, mode, dim, kind)
    mined = _beside_float64(setting, "float32", setting.dims[0], "bank", MINING)
    checks[f"float32, D = {setting.dims[0]}, bank, mined"] = mined
    for mode in setting.modes:
        for dim in setting.dims:
            for kind in ("bank", "itself"):
                name = f"{mode}, D = {dim}, {kind}, the same bits"
                checks[name] = _same_bits(setting, mode, dim, kind)
    return checks


def _beside_float64(
    setting: Setting, mode: str, dim: int, kind: str, mining: HardNegativeSampler | None = None
) -> Check:
    def check() -> dict[str, float]:
        drawn = Drawn.draw(setting, mode, dim, kind, setting.entries)
        with products(mode):
            actual = drawn.run(setting.backend, mining)
        truth = drawn.in_float64().run("dense", mining)
        bounds = [MODES[mode].loss_bound, *[MODES[mode].gradient_bound] * (len(truth) - 1)]
        return compare(actual, truth, bounds)

    return check


def _same_bits(setting: Setting, mode: str, dim: int, kind: str) -> Check:
    """Of three runs, on as many entries as a bank has: programs then overlap as in training."""

    def check() -> dict[str, float]:
        drawn = Drawn.draw(setting, mode, dim, kind, setting.many)
        with products(mode):
            first, *others = (drawn.run(setting.backend) for _ in range(3))
        for other in others:
            require_same_bits(first, other)
        return {}

    return check


def products(mode: str) -> AbstractContextManager[None]:
    """Inside, float32 is multiplied as the mode says."""
    return matmul_precision(MODES[mode].precision)


def compare(actual: list[Tensor], truth: list[Tensor], bounds: list[float]) -> dict[str, float]:
    """The relative errors of loss and gradients; raises where one is beyond its bound."""
    names = ("loss", "anchors", "entries")
    errors = {
        name: float((a.double() - t).abs().max() / t.abs().max())
        for name, a, t in zip(names, actual, truth, strict=False)
    }
    for (name, error), bound in zip(errors.items(), bounds, strict=True):
        if not error <= bound:
            raise CheckError(f"{name}: relative error {error:.3g}, expected at most {bound:.3g}")
    return errors


def require_same_bits(first: list[Tensor], other: list[Tensor]) -> None:
    """Raise where two runs differ in any bit."""
    for number, (one, two) in enumerate(zip(first, other, strict=True)):
        if not torch.equal(one, two):
            count = int((one != two).sum())
            raise CheckError(f"result {number}: {count} of {one.numel()} elements differ")
