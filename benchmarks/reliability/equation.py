"""Whether a value of the equation and its gradients are correct, compared with float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.perform import copy_of, named_tensors
from benchmarks.reliability.plain import expect, is_valid
from pixcontrast import HardNegativeSampler
from pixcontrast.functional import info_nce

Equation = dict[str, Any]
"""The arguments of `info_nce` by name, with `contrast` and `contrast_labels` as lists.

With `images` (M,), the anchors are only contrasted with those of their own image.
"""


class Verdict(NamedTuple):
    """The comparison of a correct value; the errors are infinite if it was only searched for NaN.

    Attributes:
        gradient: by the anchors in float64; None if it was not computed.
        allowed: allowed error of a component of the package's gradient.
        of_a_mean: allowed error of a mean of losses.
    """

    gradient: Tensor | None = None
    allowed: float = math.inf
    of_a_mean: float = math.inf


def rounded(equation: Equation) -> list[Tensor | None]:
    """Return the entries in float64 as operands: rounded to the anchors' dtype, saturated."""
    dtype = equation["anchors"].dtype
    limit = torch.finfo(dtype).max
    narrowed = (
        c.double().clamp(-limit, limit) if c is not None and torch.finfo(c.dtype).max > limit else c
        for c in equation["contrast"]
    )
    return [None if c is None else c.to(dtype).double() for c in narrowed]


def pairs(equation: Equation) -> tuple[Tensor, Tensor, Tensor]:
    """Return (M, N) similarities in float64, and which pairs are positive and negative."""
    own, ignore = equation["anchor_labels"].to(torch.int64), equation["ignore_index"]
    images = equation.get("images")

    def masked(vectors: Tensor, labels: Tensor) -> Tensor:
        return torch.where(is_valid(labels, ignore)[:, None], vectors, 0.0)

    anchors = equation["anchors"].double()
    entries, classes = [anchors[:0]], [own[:0]]
    excluded = [torch.zeros(len(own), 0, dtype=torch.bool)]
    for vectors, labels in zip(rounded(equation), equation["contrast_labels"], strict=True):
        columns = own if labels is None else labels.to(torch.int64)
        entries.append(masked(anchors if vectors is None else vectors, columns))
        classes.append(columns)
        of_anchors = vectors is None or labels is None
        excluded.append(torch.eye(len(own), len(columns), dtype=torch.bool) & of_anchors)
        if of_anchors and images is not None:
            excluded[-1] |= images[:, None] != images
    columns = torch.cat(classes)
    valid = is_valid(own, ignore)[:, None] & is_valid(columns, ignore)
    valid &= ~torch.cat(excluded, dim=1)
    same = own[:, None] == columns
    products = masked(anchors, own) @ torch.cat(entries).T
    similarities = products / float(equation["temperature"])
    return similarities, valid & same, valid & ~same


def in_double(equation: Equation, draw: Tensor | None, **changes: Any) -> Tensor:
    """Evaluate the textbook formula on float64 tensors, from a state of the generator."""
    doubled = {"anchors": equation["anchors"].double(), "contrast": rounded(equation)}
    generator = None if draw is None else copy_of(draw)
    options = {**equation, **doubled, **changes, "generator": generator, "backend": "dense"}
    images, reduction = options.pop("images", None), options["reduction"]
    if images is None:
        loss: Tensor = info_nce(**options)
        return loss
    # One equation for each image, in which the anchors of the others are ignored.
    labels, options["reduction"] = options["anchor_labels"], "none"
    losses: Tensor = options["anchors"].sum(dim=1) * 0.0
    for image in images.unique():
        of_image = torch.where(images == image, labels, options["ignore_index"])
        losses = losses + info_nce(**{**options, "anchor_labels": of_image})
    if reduction == "none":
        return losses
    counted = pairs({**equation, **changes})[1].any(dim=1).double()
    if options["weight"] is not None:
        counted = counted * options["weight"]
    return losses.sum() / (1.0 if reduction == "sum" else float(counted.sum()) or 1.0)


def judge(
    equation: Equation,
    draw: Tensor | None,
    loss: Tensor,
    gradients: Mapping[str, Tensor],
    off: float = 0.0,
) -> Verdict:
    """Compare loss and gradients with float64, within the bounds of docs/numerics.md.

    Args:
        draw: state of the generator before a selection is drawn; None if it is not known.
        off: allowed error of the length of an entry or an anchor.

    Raises:
        WrongError: for NaN from finite similarities, and for an error that rounding cannot explain.
    """
    anchors, contrast, tau = equation["anchors"], rounded(equation), float(equation["temperature"])
    operands = [(anchors.double(), equation["anchor_labels"])]
    operands += [
        (entries, own)
        for entries, own in zip(contrast, equation["contrast_labels"], strict=True)
        if entries is not None and own is not None
    ]
    valid = [vectors[is_valid(own, equation["ignore_index"])] for vectors, own in operands]
    if not all(bool(torch.isfinite(part).all()) for part in valid):
        return Verdict()
    longest, *lengths = (float(p.norm(dim=1).max()) if len(p) else 0.0 for p in valid)
    wide = max([0.0, *lengths, *(longest for c in contrast if c is None)])
    compute = torch.finfo(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    size = longest * wide * max(1.0, 1.0 / tau)
    if not size < compute.max / 8 or not 1.0 / tau < compute.max:
        return Verdict()  # a component of a product may overflow
    expect(not bool(loss.isnan().any()), "the loss is NaN")
    steep = max(longest, wide, 1.0) / tau * max(len(anchors), 1)
    if steep < compute.max / 1e3:
        expect(not any(bool(g.isnan().any()) for g in gradients.values()), "the gradient is NaN")
    weight, mining = equation["weight"], equation["negative_sampler"]
    heaviest = 1.0 if weight is None or not weight.numel() else float(weight.double().max())
    in_range = max(longest, wide) <= 1e6 and (heaviest == 0 or 1e-6 <= heaviest <= 1e6)
    if not in_range or (mining is not None and draw is None):
        return Verdict()

    # docs/numerics.md: rounding of the similarities, and of sums over so many terms.
    similarity = longest * wide / tau
    num_terms = sum(len(anchors) if c is None else len(c) for c in contrast) + len(anchors) + 20
    delta = (anchors.shape[1] + 8) * compute.eps * similarity
    delta += off * max(longest, wide) / tau
    # A product below the smallest normal number may be flushed to zero.
    delta += (anchors.shape[1] + 8) * compute.smallest_normal * max(1.0, 1.0 / tau)
    each = 4 * (delta + num_terms * compute.eps * (1 + similarity + math.log(num_terms)))
    sure = torch.ones(len(anchors), dtype=torch.bool)
    if mining is not None:
        sure = _sure_rows(mining, equation, delta)
        if not bool(sure.all()) and (equation["reduction"] != "none" or not bool(sure.any())):
            return Verdict()
    leaves: dict[str, Tensor] = {"anchors": anchors.double().clone().requires_grad_()}
    for index, entries in enumerate(contrast):
        # A saturated entry has another slope.
        if entries is not None and _largest(entries) < torch.finfo(anchors.dtype).max:
            leaves[f"contrast[{index}]"] = entries.clone().requires_grad_()
    found = [leaves.get(f"contrast[{index}]", one) for index, one in enumerate(contrast)]
    expected = in_double(equation, draw, anchors=leaves["anchors"], contrast=found)
    count = len(anchors) * max(1.0, heaviest) if equation["reduction"] != "mean" else 1.0
    difference = loss.double() - expected.detach()
    error = _largest(difference[sure] if equation["reduction"] == "none" else difference)
    close = error <= each * count + compute.tiny
    expect(close, f"the loss is off by {error:.2e}, more than {each * count:.2e}")
    if delta > 0.05 or not bool(sure.all()) or not expected.requires_grad:
        return Verdict(of_a_mean=each)
    slope = max(longest, wide) / tau * count * (len(anchors) if count > 1 else 1)
    true = torch.autograd.grad(expected.sum(), list(leaves.values()), materialize_grads=True)
    limits = {}
    for name, gradient in zip(leaves, true, strict=True):
        given = dict(named_tensors({n: equation[n] for n in ("anchors", "contrast")}))[name]
        info = torch.finfo(given.dtype)
        limit = slope * 2 * each + 4 * info.eps * _largest(gradient) + 4 * info.smallest_normal
        limits[name] = limit
        if name in gradients:
            error = _largest(gradients[name].double() - gradient)
            close = error <= limit or not math.isfinite(error)
            expect(close, f"the gradient of {name} is off by {error:.2e}, more than {limit:.2e}")
    return Verdict(true[0], limits["anchors"], each)


def _sure_rows(mining: HardNegativeSampler, equation: Equation, delta: float) -> Tensor:
    """Return (M,) whether similarities with errors up to `delta` select the same entries.

    A random selection does not depend on similarities. Otherwise the last selected entry and the
    first rejected one must differ by more than both errors, because near ties may fall either way.
    """
    similarities, positive, negative = pairs(equation)
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


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
