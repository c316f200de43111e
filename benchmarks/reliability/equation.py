"""Whether a value of the equation and its gradients are correct, compared with float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.perform import copy_of
from benchmarks.reliability.plain import expect, is_valid
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce


@dataclass(frozen=True)
class Equation:
    """A call of the equation.

    Attributes:
        anchors, labels, contrast, contrast_labels: as `info_nce` takes them, in lists.
        temperature, denominator, weight, reduction, ignore: its options.
        mining: the negative sampler, or None for all entries.
        draw: state of the generator before a selection is drawn; None if it is not known.
        off: allowed error of the length of an entry or an anchor.
    """

    anchors: Tensor
    labels: Tensor
    contrast: list[Tensor | None]
    contrast_labels: list[Tensor | None]
    temperature: float
    denominator: Any
    weight: Tensor | None
    reduction: Any
    ignore: int
    mining: HardNegativeSampler | None = None
    draw: Tensor | None = None
    off: float = 0.0

    def rounded(self) -> list[Tensor | None]:
        """Return the entries in float64 as operands: rounded to the anchors' dtype, saturated."""
        limit = torch.finfo(self.anchors.dtype).max
        narrowed = (
            c.clamp(-limit, limit) if c is not None and torch.finfo(c.dtype).max > limit else c
            for c in self.contrast
        )
        return [None if c is None else c.to(self.anchors.dtype).double() for c in narrowed]

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (M, N) similarities in float64, and which pairs are positive and negative."""
        own = self.labels.to(torch.int64)
        anchors = _zero_ignored(self.anchors.double(), own, self.ignore)
        entries, classes = [anchors[:0]], [own[:0]]
        is_self = [torch.zeros(len(own), 0, dtype=torch.bool)]
        for vectors, labels in zip(self.rounded(), self.contrast_labels, strict=True):
            of_anchors = vectors is None or labels is None
            vectors = self.anchors.double() if vectors is None else vectors
            columns = own if labels is None else labels.to(torch.int64)
            entries.append(_zero_ignored(vectors, columns, self.ignore))
            classes.append(columns)
            is_self.append(torch.eye(len(own), len(columns), dtype=torch.bool) & of_anchors)
        columns = torch.cat(classes)
        valid = is_valid(own, self.ignore)[:, None] & is_valid(columns, self.ignore)
        same = own[:, None] == columns
        similarities = anchors @ torch.cat(entries).T / self.temperature
        return similarities, valid & same & ~torch.cat(is_self, dim=1), valid & ~same

    def in_double(self, anchors: Tensor, contrast: list[Tensor | None], **changes: Any) -> Tensor:
        """Evaluate the textbook formula on float64 tensors."""
        options = {
            "temperature": self.temperature,
            "denominator": self.denominator,
            "weight": self.weight,
            "reduction": self.reduction,
            "ignore_index": self.ignore,
            "negative_sampler": self.mining,
            "generator": None if self.draw is None else copy_of(self.draw),
            "backend": "dense",
        }
        tensors = (anchors, self.labels, contrast, self.contrast_labels)
        return info_nce(*tensors, **{**options, **changes})


class Verdict(NamedTuple):
    """The comparison of a correct value.

    Attributes:
        compared: whether values were compared, and not only searched for NaN.
        gradient: by the anchors in float64; None if it was not computed.
        allowed: allowed error of a component of the package's gradient.
        of_a_mean: allowed error of a mean of losses.
    """

    compared: bool = False
    gradient: Tensor | None = None
    allowed: float = math.inf
    of_a_mean: float = math.inf


def judge(equation: Equation, loss: Tensor, gradients: Mapping[str, Tensor]) -> Verdict:
    """Compare loss and gradients with float64, within the bounds of docs/numerics.md.

    Raises:
        WrongError: for NaN from finite similarities, and for an error that rounding cannot explain.
    """
    anchors, tau, rounded = equation.anchors, equation.temperature, equation.rounded()
    operands = [(anchors.double(), equation.labels)]
    operands += [
        (entries, own)
        for entries, own in zip(rounded, equation.contrast_labels, strict=True)
        if entries is not None and own is not None
    ]
    valid = [vectors[is_valid(own, equation.ignore)] for vectors, own in operands]
    if not all(bool(torch.isfinite(part).all()) for part in valid):
        return Verdict()
    longest, *lengths = (float(p.norm(dim=1).max()) if len(p) else 0.0 for p in valid)
    wide = max([0.0, *lengths, *(longest for c in rounded if c is None)])
    compute = torch.finfo(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    size = longest * wide * max(1.0, 1.0 / tau)
    if not size < compute.max / 8 or not 1.0 / tau < compute.max:
        return Verdict()  # a component of a product may overflow
    expect(not bool(loss.isnan().any()), "the loss is NaN")
    steep = max(longest, wide, 1.0) / tau * max(len(anchors), 1)
    if steep < compute.max / 1e3:
        expect(not any(bool(g.isnan().any()) for g in gradients.values()), "the gradient is NaN")
    weight, mining = equation.weight, equation.mining
    heaviest = 1.0 if weight is None or not weight.numel() else float(weight.double().max())
    in_range = max(longest, wide) <= 1e6 and 1e-6 <= heaviest <= 1e6
    if not in_range or (mining is not None and equation.draw is None):
        return Verdict()

    # docs/numerics.md: rounding of the similarities, and of sums over so many terms.
    similarity = longest * wide / tau
    num_terms = sum(len(anchors) if c is None else len(c) for c in rounded) + len(anchors) + 20
    delta = (anchors.shape[1] + 8) * compute.eps * similarity
    delta += equation.off * max(longest, wide) / tau
    # A product below the smallest normal number may be flushed to zero.
    delta += (anchors.shape[1] + 8) * compute.smallest_normal * max(1.0, 1.0 / tau)
    each = 4 * (delta + num_terms * compute.eps * (1 + similarity + math.log(num_terms)))
    sure = torch.ones(len(anchors), dtype=torch.bool)
    if mining is not None:
        sure = _sure_rows(mining, equation, delta)
        if not bool(sure.all()) and (equation.reduction != "none" or not bool(sure.any())):
            return Verdict()
    leaves: dict[str, Tensor] = {"anchors": anchors.double().clone().requires_grad_()}
    for index, entries in enumerate(rounded):
        # A saturated entry has another slope.
        if entries is not None and _largest(entries) < torch.finfo(anchors.dtype).max:
            leaves[f"contrast[{index}]"] = entries.clone().requires_grad_()
    found = [leaves.get(f"contrast[{index}]", one) for index, one in enumerate(rounded)]
    expected = equation.in_double(leaves["anchors"], found)
    count = len(anchors) * max(1.0, heaviest) if equation.reduction != "mean" else 1.0
    difference = loss.double() - expected.detach()
    error = _largest(difference[sure] if equation.reduction == "none" else difference)
    close = error <= each * count + compute.tiny
    expect(close, f"the loss is off by {error:.2e}, more than {each * count:.2e}")
    if delta > 0.05 or not bool(sure.all()) or not expected.requires_grad:
        return Verdict(compared=True, of_a_mean=each)
    slope = max(longest, wide) / tau * count * (len(anchors) if count > 1 else 1)
    true = torch.autograd.grad(expected.sum(), list(leaves.values()), materialize_grads=True)
    limits = {}
    dtypes = {f"contrast[{i}]": c.dtype for i, c in enumerate(equation.contrast) if c is not None}
    for name, gradient in zip(leaves, true, strict=True):
        info = torch.finfo(dtypes.get(name, anchors.dtype))
        limit = slope * 2 * each + 4 * info.eps * _largest(gradient) + 4 * info.smallest_normal
        limits[name] = limit
        if name in gradients:
            error = _largest(gradients[name].double() - gradient)
            close = error <= limit or not math.isfinite(error)
            expect(close, f"the gradient of {name} is off by {error:.2e}, more than {limit:.2e}")
    return Verdict(True, true[0], limits["anchors"], each)


def _sure_rows(mining: HardNegativeSampler, equation: Equation, delta: float) -> Tensor:
    """Return (M,) whether similarities with errors up to `delta` select the same entries.

    A random selection does not depend on similarities. Otherwise the last selected entry and the
    first rejected one must differ by more than both errors, because near ties may fall either way.
    """
    similarities, positive, negative = equation.pairs()
    sure = torch.ones(len(similarities), dtype=torch.bool)
    sides = (
        (similarities, negative, mining.num_negatives),
        (-similarities, positive, mining.num_positives),
    )
    for hardness, candidate, count in sides if mining.strategy != "random" else ():
        if count is None or candidate.shape[1] == 0:
            continue
        available = candidate.sum(dim=1)
        taken = torch.full_like(available, min(count, candidate.shape[1]))
        if mining.strategy == "semi-hard":
            taken = (mining.ratio * available.double() - 1e-6).ceil().clamp(min=1).to(torch.int64)
        ordered = hardness.masked_fill(~candidate, -torch.inf).sort(dim=1, descending=True).values
        ordered = torch.nn.functional.pad(ordered, (0, 1), value=-torch.inf)
        last, following = (ordered.gather(1, index[:, None])[:, 0] for index in (taken - 1, taken))
        # Two errors of delta, and one more for the rounding of float64.
        sure &= (taken >= available) | (last - following > 3 * delta)
    return sure


def _zero_ignored(vectors: Tensor, labels: Tensor, ignore: int) -> Tensor:
    return torch.where(is_valid(labels, ignore)[:, None], vectors, 0.0)


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
