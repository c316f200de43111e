"""Whether a value of the equation and its gradients are correct, compared with float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.truth_mining import Pairs, sure_rows
from benchmarks.reliability.truth_pixels import expect, is_readable, is_valid, plain
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

OPTIONS = ("temperature", "denominator", "weight", "reduction", "ignore_index")


class Equation(NamedTuple):
    """A call of the equation.

    Attributes:
        anchors, labels, contrast, contrast_labels: as `info_nce` takes them, in lists.
        options: those of `OPTIONS`.
        mining: the negative sampler, or None for all entries.
        draw: the generator before a selection is drawn; None if it is not known.
        off: allowed error of the length of an entry or an anchor.
    """

    anchors: Tensor
    labels: Tensor
    contrast: list[Tensor | None]
    contrast_labels: list[Tensor | None]
    options: Mapping[str, Any]
    mining: HardNegativeSampler | None = None
    draw: torch.Generator | None = None
    off: float = 0.0

    @property
    def ignore(self) -> int:
        """The label to ignore."""
        ignore: int = self.options["ignore_index"]
        return ignore

    def rounded(self) -> list[Tensor | None]:
        """Return the entries as operands: rounded to the anchors' dtype, where they saturate."""
        return [None if c is None else rounded_to(c, self.anchors.dtype) for c in self.contrast]

    def pairs(self) -> Pairs:
        """Compute all pairs in float64; ignored vectors count as zero."""
        own = self.labels.to(torch.int64)
        anchors = _zero_ignored(self.anchors.double(), own, self.ignore)
        entries, classes, is_self = [], [], []
        for vectors, labels in zip(self.rounded(), self.contrast_labels, strict=True):
            of_anchors = vectors is None or labels is None
            vectors = self.anchors.double() if vectors is None else vectors
            columns = own if labels is None else labels.to(torch.int64)
            entries.append(_zero_ignored(vectors, columns, self.ignore))
            classes.append(columns)
            is_self.append(torch.eye(len(own), len(columns), dtype=torch.bool) & of_anchors)
        if not entries:
            nothing = torch.zeros(len(own), 0)
            return Pairs(nothing.double(), nothing.bool(), nothing.bool())
        similarities = anchors @ torch.cat(entries).T / float(self.options["temperature"])
        columns = torch.cat(classes)
        valid = is_valid(own, self.ignore)[:, None] & is_valid(columns, self.ignore)
        same = own[:, None] == columns
        return Pairs(similarities, valid & same & ~torch.cat(is_self, dim=1), valid & ~same)

    def in_double(self, anchors: Tensor, contrast: list[Tensor | None], **changes: Any) -> Tensor:
        """Evaluate the textbook formula on float64 tensors."""
        options = {**self.options, "negative_sampler": self.mining, **changes}
        generator = None if self.draw is None else copy_of(self.draw)
        return info_nce(
            anchors,
            self.labels,
            contrast,
            self.contrast_labels,
            generator=generator,
            backend="dense",
            **options,
        )


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


def check_info_nce(
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    loss: Tensor,
    gradients: Mapping[str, Tensor],
) -> None:
    """Check the result of a call of `info_nce`."""
    anchors, labels = given["anchors"], given["anchor_labels"]
    shape = torch.Size(labels.shape if given["reduction"] == "none" else ())
    expect(loss.shape == shape, f"the loss has the shape {tuple(loss.shape)}")
    if not is_readable(anchors):
        return
    contrast, contrast_labels = given["contrast"], given["contrast_labels"]
    if contrast is None or isinstance(contrast, Tensor):
        contrast, contrast_labels = [contrast], [contrast_labels]
        gradients = {"contrast[0]" if n == "contrast" else n: g for n, g in gradients.items()}
    equation = Equation(
        plain(anchors),
        labels,
        [None if c is None else plain(c) for c in contrast],
        [None] * len(contrast) if contrast_labels is None else list(contrast_labels),
        {name: given[name] for name in OPTIONS},
        given["negative_sampler"],
        known.get("draw"),
    )
    judge(equation, plain(loss), gradients)


def judge(equation: Equation, loss: Tensor, gradients: Mapping[str, Tensor]) -> Verdict:
    """Compare loss and gradients with float64, within the bounds of docs/numerics.md.

    Raises:
        WrongError: for NaN from finite similarities, and for an error that rounding cannot explain.
    """
    anchors, labels, contrast, contrast_labels, options, mining, draw, off = equation
    ignore, tau = equation.ignore, float(options["temperature"])
    rounded = equation.rounded()
    valid = [anchors.double()[is_valid(labels, ignore)]]
    for entries, own in zip(rounded, contrast_labels, strict=True):
        if entries is not None and own is not None:
            valid.append(entries[is_valid(own, ignore)])
    if not all(bool(torch.isfinite(part).all()) for part in valid):
        return Verdict()
    longest, *lengths = (float(p.norm(dim=1).max()) if len(p) else 0.0 for p in valid)
    wide = max(lengths, default=0.0)
    wide = max(wide, longest) if any(c is None for c in contrast) else wide
    compute = torch.finfo(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    size = longest * wide * max(1.0, 1.0 / tau)
    if not size < compute.max / 8 or not 1.0 / tau < compute.max:
        return Verdict()  # a component of a product may overflow
    expect(not bool(loss.isnan().any()), "the loss is NaN")
    steep = max(longest, wide, 1.0) / tau * max(len(anchors), 1)
    if steep < compute.max / 1e3:
        expect(not any(bool(g.isnan().any()) for g in gradients.values()), "the gradient is NaN")
    if max(longest, wide) > 1e6:
        return Verdict()
    weight = options["weight"]
    heaviest = 1.0
    if weight is not None and weight.numel():
        heaviest = float(weight.detach().double().max())
    if heaviest > 1e6 or heaviest < 1e-6 or (mining is not None and draw is None):
        return Verdict()

    # docs/numerics.md: rounding of the similarities, and of sums over so many terms.
    similarity = longest * wide / tau
    num_terms = sum(len(anchors) if c is None else len(c) for c in contrast) + len(anchors) + 20
    delta = (anchors.shape[1] + 8) * compute.eps * similarity + off * max(longest, wide) / tau
    # A product below the smallest normal number may be flushed to zero.
    delta += (anchors.shape[1] + 8) * compute.smallest_normal * max(1.0, 1.0 / tau)
    each = 4 * (delta + num_terms * compute.eps * (1 + similarity + math.log(num_terms)))
    sure = torch.ones(len(anchors), dtype=torch.bool)
    if mining is not None:
        sure = sure_rows(mining, equation.pairs(), delta)
        if not bool(sure.all()) and (options["reduction"] != "none" or not bool(sure.any())):
            return Verdict()
    leaves: dict[str, Tensor] = {"anchors": anchors.double().clone().requires_grad_()}
    for index, entries in enumerate(rounded):
        # A saturated entry has another slope.
        if entries is not None and _largest(entries) < torch.finfo(anchors.dtype).max:
            leaves[f"contrast[{index}]"] = entries.clone().requires_grad_()
    operands = [leaves.get(f"contrast[{index}]", one) for index, one in enumerate(rounded)]
    expected = equation.in_double(leaves["anchors"], operands)
    count = len(anchors) * max(1.0, heaviest) if options["reduction"] != "mean" else 1.0
    difference = loss.double() - expected.detach()
    error = _largest(difference[sure] if options["reduction"] == "none" else difference)
    close = error <= each * count + compute.tiny
    expect(close, f"the loss is off by {error:.2e}, more than {each * count:.2e}")
    if delta > 0.05 or not bool(sure.all()) or not expected.requires_grad:
        return Verdict(compared=True, of_a_mean=each)
    slope = max(longest, wide) / tau * count * (len(anchors) if count > 1 else 1)
    dtypes = {f"contrast[{i}]": c.dtype for i, c in enumerate(contrast) if c is not None}
    dtypes["anchors"] = anchors.dtype
    true = torch.autograd.grad(expected.sum(), list(leaves.values()), materialize_grads=True)
    limits = {}
    for name, gradient in zip(leaves, true, strict=True):
        info = torch.finfo(dtypes[name])
        limit = slope * 2 * each + 4 * info.eps * _largest(gradient) + 4 * info.smallest_normal
        limits[name] = limit
        if name in gradients:
            error = _largest(gradients[name].double() - gradient)
            close = error <= limit or not math.isfinite(error)
            expect(close, f"the gradient of {name} is off by {error:.2e}, more than {limit:.2e}")
    return Verdict(True, true[0], limits["anchors"], each)


def copy_of(generator: torch.Generator) -> torch.Generator:
    """Copy a generator with its state."""
    copied = torch.Generator()
    copied.set_state(generator.get_state())
    return copied


def rounded_to(entries: Tensor, dtype: torch.dtype) -> Tensor:
    """Round entries to a dtype, where they saturate; returns float64."""
    limit = torch.finfo(dtype).max
    if torch.finfo(entries.dtype).max > limit:
        entries = entries.clamp(-limit, limit)
    return entries.to(dtype).double()


def _zero_ignored(vectors: Tensor, labels: Tensor, ignore: int) -> Tensor:
    return torch.where(is_valid(labels, ignore)[:, None], vectors, 0.0)


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
