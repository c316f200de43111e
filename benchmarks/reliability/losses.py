"""Whether losses are correct: their samples, anchors, values and gradients, on all ranks.

Every step is repeated from the arguments, in float64 and as plainly as possible; only the equation
is the package's own textbook form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.equation import Equation, Verdict, in_double, judge, pairs
from benchmarks.reliability.perform import Answer
from benchmarks.reliability.plain import (
    directions,
    expect,
    pixels_of,
    regions_of,
    rounding_of,
    same_bits,
)
from benchmarks.reliability.step import Step
from pixcontrast import AnchorSample

MOST_OFF = 0.1
"""Regions and embeddings whose error is larger are not certain, nor is a loss against them."""
STEEPEST = 1e35
"""A component of a gradient by the anchors of unit length that is certainly a float32."""
SMALLEST_FACTOR = 1e-30
"""The product of a loss and a smaller factor may be below the range of float32."""
EVERY_IMAGE = 1000
"""More images than a batch has."""


def check_losses(calls: Sequence[Call], answers: Sequence[Answer]) -> None:
    """Check the losses of all ranks, in rank order."""
    for answer in answers:
        alone = answer.get("alone")
        same = alone is None or same_bits(alone, {"loss": answer["loss"], **answer["after"]})
        expect(same, "with return_anchors the loss or the bank is another")
    steps = [Step(*one, ranks=len(calls)) for one in zip(calls, answers, strict=True)]
    for step in steps:
        _check_sampling(step)
        _check_bank(step, steps)
    if not all(step.is_finite for step in steps) or steps[0].factor < SMALLEST_FACTOR:
        return
    for step in steps:
        # Without `normalize` similarities may overflow.
        if step.normalize:
            expect(not bool(step.loss.isnan().any()), "the loss is NaN")
            # Before the normalization, a steeper gradient may be infinite.
            steep = max(len(step.anchors), 1) / float(step.options["temperature"])
            if step.gradient is not None and step.emb.dtype != torch.float16 and steep < STEEPEST:
                expect(not bool(step.gradient.isnan().any()), "the gradient is NaN")
    sharded = "shard" in steps[0].bank
    if steps[0].options["gather"]:
        _check_together(steps, sharded)
        return
    for step in steps:
        equation, off = _equation_of([step], steps if sharded else [step])
        if off < MOST_OFF:
            verdict = judge(equation, step.draw, step.loss.double() / step.factor, {}, off)
            _check_gradient(step, verdict, step.factor)


def _check_sampling(step: Step) -> None:
    """Check sample and anchors."""
    check_sample(step.options["anchor_sampler"], step.labels, step.ignore, step.sample)
    if not step.is_finite or not step.off < MOST_OFF:
        return
    if not step.normalize:
        expect(torch.equal(step.anchors.double(), step.vectors), "the anchors are other pixels")
    else:
        true, dtype = directions(step.vectors)[0], step.anchors.dtype
        info = torch.finfo(dtype)
        allowed = info.eps * true.abs() + (true.shape[1] + 8) * rounding_of(dtype)
        allowed += info.smallest_normal + 2 * step.off
        close = bool(((step.anchors.double() - true).abs() <= allowed).all())
        expect(close, "the anchors are not of unit length, or other pixels")


def check_sample(sampler: Any, labels: Tensor, ignore: int, sample: AnchorSample) -> None:
    """Check the number of anchors, that they are distinct, and that they have their labels."""
    size, taken = min(sampler.max_anchors, labels.numel()), sample.labels != ignore
    indices = sample.indices[taken]
    whole = len(sample.indices) == size and len(set(indices.tolist())) == len(indices)
    expect(whole, "the sample has another size, or a pixel twice")
    found = labels.flatten()[indices].to(torch.int64)
    same = torch.equal(found, sample.labels[taken].to(torch.int64)) and bool((found >= 0).all())
    expect(same, "a sampled pixel has another label")
    most = int(found.bincount().max()) if len(found) else 0
    expect(most <= (sampler.max_per_class or most), "a class has too many anchors")


def _check_bank(step: Step, steps: Sequence[Step]) -> None:
    """Check that only classes of this call are written, and none without an update.

    Pixels that are ignored, or have a weight of 0, are not part of a call.
    """
    if not step.bank:
        return
    taken = [one.labels.flatten() if one.updates else one.labels.new_empty(0) for one in steps]
    absent = ~torch.isin(torch.arange(len(step.bank["pixels"])), torch.cat(taken))
    of_absent = (
        {name: held[absent] for name, held in bank.items() if name != "shard"}
        for bank in (step.bank, step.bank_after)
    )
    expect(same_bits(*of_absent), "the bank holds another class, or was updated")


def _check_together(steps: Sequence[Step], sharded: bool) -> None:
    """Check a loss that gathers: rank r returns W·S_r/n, so means over ranks are those of one."""
    size, factor = len(steps), steps[0].factor
    equation, off = _equation_of(steps, steps if sharded else steps[:1])
    if off >= MOST_OFF:
        return
    losses, draw = [step.loss.double() / factor for step in steps], steps[0].draw
    verdict = judge(equation, draw, torch.stack(losses).mean(dim=0), {}, off)
    if verdict.of_a_mean == math.inf:
        return
    weights = equation["weight"]
    weights = (torch.ones(len(equation["anchors"])) if weights is None else weights).double()
    each = in_double(equation, draw, reduction="none", weight=weights)
    parts = torch.split(each, [len(step.anchors) for step in steps])
    total, most, count, start = 1.0, float(weights.sum()), float(len(each)), 0
    if equation["reduction"] == "mean":
        positive = pairs(equation)[1].any(dim=1)
        total, most, count = float((weights * positive).sum()) or 1.0, 1.0, 1.0
    longest = max([1.0, *equation["anchors"].double().norm(dim=1).tolist()])
    for rank, (step, own) in enumerate(zip(steps, parts, strict=True)):
        # A share is a part of the mean, or W times the whole of it.
        allowed = size * verdict.of_a_mean * max(1.0, most) + 1e-37
        error = abs(float(losses[rank]) - size * float(own.sum()) / total)
        expect(error <= allowed, f"rank {rank}: its share of the loss is off by {error:.2e}")
        # Each rank's part of a gradient, at most 1/τ, is rounded to the dtype.
        info = torch.finfo(step.emb.dtype)
        rounded = info.eps * longest * count / equation["temperature"] + info.smallest_normal
        part = slice(start, start := start + len(own))
        _check_gradient(step, verdict, size * factor, part, (size + 2) * rounded)


def _equation_of(own: Sequence[Step], shards: Sequence[Step]) -> tuple[Equation, float]:
    """Build the equation of the anchors of some ranks; returns the error of its entries too.

    Args:
        own: the ranks whose anchors and batches take part.
        shards: the ranks that hold the bank's entries together.
    """
    first = own[0]
    contrast: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    off = 0.0
    images = torch.cat([step.images + rank * EVERY_IMAGE for rank, step in enumerate(own)])
    for source in first.options["contrast_with"]:
        if source == "batch" and first.of_regions:
            for step in own:
                means, of_means, off_by = _batch_regions(step)
                contrast.append(means)
                labels.append(of_means)
                off = max(off, off_by)
        elif source in ("batch", "image"):
            contrast.append(None)
            labels.append(None)
        else:
            for step in shards:
                held, count = step.bank[source], step.bank[source[:-1] + "_count"]
                written = torch.arange(held.shape[1]) < count[:, None]
                classes = torch.arange(len(held))[:, None]
                contrast.append(held.flatten(0, 1))
                labels.append(torch.where(written, classes, first.ignore).flatten())
    weights = [step.weight for step in own if step.weight is not None]
    kept = ("denominator", "reduction", "ignore_index", "negative_sampler")
    equation = {
        **{name: first.options[name] for name in kept},
        "anchors": torch.cat([step.anchors for step in own]),
        "anchor_labels": torch.cat([step.sample.labels.to(torch.int64) for step in own]),
        "contrast": contrast,
        "contrast_labels": labels,
        "temperature": float(first.options["temperature"]),
        "weight": torch.cat(weights) if weights else None,
        "images": images if "image" in first.options["contrast_with"] else None,
    }
    return equation, off


def _check_gradient(
    step: Step, verdict: Verdict, factor: float, part: slice = slice(None), more: float = 0.0
) -> None:
    """Compare the gradient by `emb` with that by the anchors, through the normalization.

    Args:
        step: the rank whose gradient is compared.
        verdict: of the equation; `part` selects the anchors of this rank.
        factor: on the gradient of the equation.
        more: allowed error of the gradient by the anchors beyond that of the verdict.
    """
    if step.gradient is None or verdict.gradient is None or len(step.sample.indices) == 0:
        return
    # In 16 bits the gradient of a head may be rounding alone.
    if not step.off < MOST_OFF or (step.head is not None and step.emb.element_size() == 2):
        return
    emb, vectors, taken = step.emb, step.vectors, step.is_anchor
    by_anchors = verdict.gradient[part] * factor
    info, dim = torch.finfo(emb.dtype), vectors.shape[1]
    # float64 from the start: the allowed error may be below the range of float32.
    allowed_norm = (verdict.allowed + more) * factor * math.sqrt(dim)
    error = torch.full((len(vectors), 1), allowed_norm, dtype=torch.float64)
    if step.normalize:
        unit, usable = directions(vectors)
        taken = taken & usable
        # Two divisions, because the length itself may overflow float64.
        largest = torch.where(usable[:, None], vectors.abs().amax(dim=1, keepdim=True), 1.0)
        relative = (vectors / largest).norm(dim=1, keepdim=True)
        relative = torch.where(usable[:, None], relative, 1.0)
        # Two operations over D terms, and one more rounding for anchors of 16 bits.
        rounding = 4 * (dim + 8) * rounding_of(emb.dtype) + 2 * info.eps
        error = (error + rounding * by_anchors.norm(dim=1, keepdim=True)) / relative / largest
        along = (by_anchors * unit).sum(dim=1, keepdim=True)
        by_anchors = (by_anchors - along * unit) / relative / largest
    if step.head is not None:
        by_anchors, error = _through_head(step, by_anchors, error + 4 * info.smallest_normal)
    expected = torch.zeros_like(pixels_of(emb)).flatten(0, 1)
    allowed = torch.zeros(len(expected), 1, dtype=torch.float64)
    indices = step.sample.indices[taken]
    expected[indices] = by_anchors[taken]
    allowed[indices] = error[taken] + 4 * info.smallest_normal
    actual = pixels_of(step.gradient).flatten(0, 1)
    off = (actual - expected).abs() - info.eps * expected.abs()
    # Values beyond the range of the dtype are infinite.
    beyond = (expected.abs() + allowed) * 2 > info.max
    most = float((off / allowed.clamp(min=1e-300)).masked_fill(beyond, 0).max())
    close = not bool((~beyond & ~(off <= allowed)).any())
    expect(close, f"the gradient of emb is off by {most:.2g} times the allowed error")


def _through_head(step: Step, by_rows: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient by the features (K, C) from that by the output of the layers (K, D).

    The allowed errors (K, 1) of the latter, and the rounding of the layers, become those of the
    former.
    """
    assert step.head is not None
    features = pixels_of(step.emb).flatten(0, 1)[step.sample.indices].requires_grad_()
    columns = step.head(features).sum(dim=0)
    slopes = [torch.autograd.grad(c, features, retain_graph=True)[0] for c in columns]
    jacobian = torch.stack(slopes, dim=1)
    steepest = jacobian.abs().sum(dim=(1, 2))[:, None]
    allowed = steepest * (error + 4 * step.off * by_rows.norm(dim=1, keepdim=True))
    return (by_rows[:, None] @ jacobian)[:, 0], allowed


def _batch_regions(step: Step) -> tuple[Tensor, Tensor, float]:
    """Return the regions of a batch, their labels, and the allowed error.

    Each image has one row for each class of the bank; without a bank, for each possible label. A
    random selection depends on the position of the rows.
    """
    images, pixels = step.labels.shape
    slots = len(step.bank["pixels"]) if step.bank else min(pixels, 256)
    means = torch.zeros(images, slots, step.pixels.shape[2], dtype=torch.float64)
    of_means = torch.full((images, slots), -1)
    off, following = 0.0, [0] * images
    for region in regions_of(step.pixels, step.emb.dtype, step.labels, step.ignore):
        row = region.label if step.bank else following[region.image]
        following[region.image] += 1
        # Rounding to the dtype of the embedding adds half an eps for each component.
        off = max(off, region.off + torch.finfo(step.emb.dtype).eps + 2 * step.off)
        if region.size > step.regions_of:
            off = math.inf  # a mean of pixels drawn at random
        if region.mean is not None and row < slots:
            means[region.image, row] = region.mean
            of_means[region.image, row] = region.label
    return means.flatten(0, 1), of_means.flatten(), off
