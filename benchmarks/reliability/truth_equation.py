"""Whether a value of the equation is right, and its gradients: against float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.truth_mining import sure_rows
from benchmarks.reliability.truth_pixels import is_present, plain, seen
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

OPTIONS = ("temperature", "denominator", "weight", "reduction", "ignore_index")


class Equation(NamedTuple):
    """A call of the equation.

    Attributes:
        anchors, labels, contrast, contrast_labels: as `info_nce` takes them, in lists.
        options: those of `OPTIONS`.
        mining: which entries count, or None for all.
        draw: the generator as it was when a selection was drawn; None where that is not known.
        off: by which length an entry, or an anchor, may be off before anything is multiplied.
    """

    anchors: Tensor
    labels: Tensor
    contrast: list[Tensor | None]
    contrast_labels: list[Tensor | None]
    options: Mapping[str, Any]
    mining: HardNegativeSampler | None = None
    draw: torch.Generator | None = None
    off: float = 0.0


class Verdict(NamedTuple):
    """What is wrong, or None; whether values were compared at all.

    Attributes:
        gradient: by the anchors, in float64; None where it was not made.
        allowed: how far a component of the package's own may be from that.
        of_a_mean: how far a mean of losses may be from float64's.
    """

    wrong: str | None = None
    compared: bool = False
    gradient: Tensor | None = None
    allowed: float = math.inf
    of_a_mean: float = math.inf


def wrong_info_nce(
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    loss: Tensor,
    gradients: Mapping[str, Tensor],
) -> str | None:
    """What is wrong with what `info_nce` gave back, or None."""
    anchors, labels = given["anchors"], given["anchor_labels"]
    rows = labels.shape if given["reduction"] == "none" else ()
    if loss.shape != torch.Size(rows):
        return f"the loss has the shape {tuple(loss.shape)}"
    if not seen(anchors):
        return None
    contrast, contrast_labels = given["contrast"], given["contrast_labels"]
    if contrast is None or isinstance(contrast, Tensor):
        contrast, contrast_labels = [contrast], [contrast_labels]
        gradients = {"contrast[0]" if n == "contrast" else n: g for n, g in gradients.items()}
    if contrast_labels is None:
        contrast_labels = [None] * len(contrast)
    equation = Equation(
        plain(anchors),
        labels,
        [None if c is None else plain(c) for c in contrast],
        list(contrast_labels),
        {name: given[name] for name in OPTIONS},
        given["negative_sampler"],
        known.get("draw"),
    )
    return judge(equation, plain(loss), gradients).wrong


def judge(equation: Equation, loss: Tensor, gradients: Mapping[str, Tensor]) -> Verdict:
    """NaN from finite similarities, or a value further from float64 than rounding explains."""
    anchors, labels, contrast, contrast_labels, options, mining, draw, off = equation
    ignore, tau = options["ignore_index"], float(options["temperature"])
    rounded = [None if c is None else rounded_to(c, anchors.dtype) for c in contrast]
    taking_part = [_taking_part(anchors.double(), labels, ignore)]
    for entries, own in zip(rounded, contrast_labels, strict=True):
        if entries is not None and own is not None:
            taking_part.append(_taking_part(entries, own, ignore))
    if not all(bool(torch.isfinite(part).all()) for part in taking_part):
        return Verdict()
    longest = [float(p.norm(dim=1).max()) if len(p) else 0.0 for p in taking_part]
    wide = max(longest[1:], default=0.0)
    wide = max(wide, longest[0]) if any(c is None for c in contrast) else wide
    compute = torch.finfo(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    size = longest[0] * wide * max(1.0, 1.0 / tau)
    if not size < compute.max / 8 or not 1.0 / tau < compute.max:
        return Verdict()  # a component of a product may overflow on its way
    if bool(loss.isnan().any()):
        return Verdict("the loss is NaN")
    steep = max(longest[0], wide, 1.0) / tau * max(len(anchors), 1)
    if steep < compute.max / 1e3 and any(bool(g.isnan().any()) for g in gradients.values()):
        return Verdict("the gradient is NaN")
    if max(longest[0], wide) > 1e6:
        return Verdict()
    weight = options["weight"]
    heaviest = (
        float(weight.detach().double().max()) if weight is not None and weight.numel() else 1.0
    )
    if heaviest > 1e6 or heaviest < 1e-6 or (mining is not None and draw is None):
        return Verdict()

    # docs/numerics.md: rounding of the similarities, and of sums of so many terms.
    similarity = longest[0] * wide / tau
    num_terms = sum(len(anchors) if c is None else len(c) for c in contrast) + len(anchors) + 20
    delta = (anchors.shape[1] + 8) * compute.eps * similarity + off * max(longest[0], wide) / tau
    # A product below the smallest normal number may be none at all.
    delta += (anchors.shape[1] + 8) * compute.smallest_normal * max(1.0, 1.0 / tau)
    each = 4 * (delta + num_terms * compute.eps * (1 + similarity + math.log(num_terms)))
    sure = torch.ones(len(anchors), dtype=torch.bool)
    if mining is not None:
        sure = sure_rows(mining, equation, rounded, delta)
        if not bool(sure.all()) and (options["reduction"] != "none" or not bool(sure.any())):
            return Verdict()
    leaf, leaves, expected = _in_double(equation, rounded)
    count = len(anchors) * max(1.0, heaviest) if options["reduction"] != "mean" else 1.0
    error = (loss.double() - expected.detach()).abs()
    if options["reduction"] == "none":
        error = error[sure]
    if error.numel() and not float(error.max()) <= each * count + compute.tiny:
        off_by = f"the loss is off by {float(error.max()):.2e}, more than {each * count:.2e}"
        return Verdict(off_by, True)
    if delta > 0.05 or not bool(sure.all()) or not expected.requires_grad:
        return Verdict(None, True, of_a_mean=each)
    named = {"anchors": leaf, **leaves}
    found = torch.autograd.grad(expected.sum(), list(named.values()), allow_unused=True)
    slope = max(longest[0], wide) / tau * count * (len(anchors) if count > 1 else 1)
    of_anchors, allowed_of_anchors = None, math.inf
    for (name, tensor), true in zip(named.items(), found, strict=True):
        true_gradient = torch.zeros_like(tensor) if true is None else true
        largest = float(_largest(true_gradient))
        number = name.removeprefix("contrast[").removesuffix("]")
        dtype = anchors.dtype if name == "anchors" else _dtype(contrast[int(number)])
        allowed = slope * 2 * each + 4 * torch.finfo(dtype).eps * largest
        allowed += 4 * torch.finfo(dtype).smallest_normal
        if name == "anchors":
            of_anchors, allowed_of_anchors = true_gradient, allowed
        if name not in gradients:
            continue
        off_by_most = float(_largest(gradients[name].double() - true_gradient))
        if math.isfinite(off_by_most) and off_by_most > allowed:
            told = f"the gradient of {name} is off by {off_by_most:.2e}, more than {allowed:.2e}"
            return Verdict(told, True)
    return Verdict(None, True, of_anchors, allowed_of_anchors, each)


def _in_double(
    equation: Equation, rounded: list[Tensor | None]
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The textbook formula in float64, with the leaves that its gradients are of."""
    leaf = equation.anchors.double().clone().requires_grad_()
    leaves = {}
    for number, entries in enumerate(rounded):
        # What saturates has a slope of its own.
        if entries is not None and float(_largest(entries)) < _saturation(equation.anchors.dtype):
            leaves[f"contrast[{number}]"] = entries.clone().requires_grad_()
    expected = info_nce(
        leaf,
        equation.labels,
        [leaves.get(f"contrast[{n}]", entries) for n, entries in enumerate(rounded)],
        equation.contrast_labels,
        negative_sampler=equation.mining,
        generator=None if equation.draw is None else copy_of(equation.draw),
        backend="dense",
        **equation.options,
    )
    return leaf, leaves, expected


def copy_of(generator: torch.Generator) -> torch.Generator:
    """One that will draw the same."""
    copied = torch.Generator()
    copied.set_state(generator.get_state())
    return copied


def _saturation(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def _dtype(tensor: Tensor | None) -> torch.dtype:
    assert tensor is not None  # what has a gradient of its own
    return tensor.dtype


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max() if tensor.numel() else tensor.new_zeros(())


def rounded_to(entries: Tensor, dtype: torch.dtype) -> Tensor:
    """Entries as operands: in the anchors' dtype, where they saturate."""
    limit = torch.finfo(dtype).max
    if torch.finfo(entries.dtype).max > limit:
        entries = entries.clamp(-limit, limit)
    return entries.to(dtype).double()


def _taking_part(vectors: Tensor, labels: Tensor, ignore: int) -> Tensor:
    return vectors[is_present(labels, ignore)]
