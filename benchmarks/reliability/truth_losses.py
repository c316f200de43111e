"""Whether a loss of a module is right: its sample, its anchors, its value, its gradient, its bank.

Every step is made again from the arguments, in float64 and as plainly as it can be written; only
the equation is the package's own textbook form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.truth_banks import wrong_writes
from benchmarks.reliability.truth_equation import Equation, copy_of, judge
from benchmarks.reliability.truth_pixels import (
    directions,
    flat,
    flat_predictions,
    pixels_of,
    plain,
    regions_of,
    seen,
)
from benchmarks.reliability.truth_samples import wrong_sample
from pixcontrast import RegionContrastLoss


def wrong_loss(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> str | None:
    """What is wrong with the answer of a loss module, or None."""
    given = call.arguments
    module: Any = call.function
    if not seen(given["emb"], given["labels"], given["preds"], given["weight"]):
        return None
    if given["return_anchors"]:
        loss, sample = result
        made = module
    else:
        made = _as_it_was(module, known)
        draw = copy_of(known["draw"])
        loss, sample = made(**{**given, "generator": draw, "return_anchors": True})
        if not _same_bits(plain(loss), plain(result)):
            return "with return_anchors the loss is another"
        if known and made.bank is not None:
            states = (bank.state_dict().values() for bank in (made.bank, module.bank))
            if not all(_same_bits(one, other) for one, other in zip(*states, strict=True)):
                return "with return_anchors the bank is another"
    return _wrong_answer(given, known, made, plain(loss), sample, gradients.get("emb"))


def _as_it_was(module: Any, known: Mapping[str, Any]) -> Any:
    """A copy of the module, with the bank as it was before the call."""
    # What the last call left is of no account, and may be of a class that cannot be copied.
    copied = copy.deepcopy(module, {id(module._call): None})
    if copied.bank is not None:
        for name, value in copied.bank.state_dict().items():
            value.copy_(known["state"][name])
    return copied


def _wrong_answer(
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    module: Any,
    loss: Tensor,
    sample: Any,
    gradient: Tensor | None,
) -> str | None:
    emb, ignore = plain(given["emb"]), module.ignore_index
    labels, preds, weight = given["labels"], given["preds"], given["weight"]
    marked = flat(plain(labels), emb).to(torch.int64)
    predicted = None if preds is None else flat_predictions(plain(preds), emb)
    wrong = wrong_sample(module.anchor_sampler, marked, predicted, ignore, sample)
    if wrong is not None:
        return wrong
    # What is drawn for a selection comes after what the sampler draws.
    draw = copy_of(known["draw"])
    absent = torch.where(marked < 0, ignore, marked)
    again = module.anchor_sampler(absent, predicted, ignore_index=ignore, generator=draw)
    if not (torch.equal(again.indices, sample.indices) and _same_bits(again.labels, sample.labels)):
        return "from the same state another sample is drawn"

    anchors = plain(module._call.anchors)
    vectors = sampled_vectors(emb, sample, ignore)
    if not bool(torch.isfinite(vectors).all()):
        return _wrong_written(given, known, module)
    if module.normalize:
        if bool(loss.isnan().any()):
            return "the loss is NaN"
        if gradient is not None and emb.dtype != torch.float16 and bool(gradient.isnan().any()):
            return "the gradient is NaN"
    if wrong := wrong_anchors(anchors, vectors, normalize=module.normalize):
        return wrong

    entries = _entries(emb, marked, known, module)
    if entries is None:
        return _wrong_written(given, known, module)
    contrast, contrast_labels, off = entries
    factor = module.temperature / (module.base_temperature or module.temperature)
    weights = None if weight is None else flat(plain(weight), emb).flatten()[sample.indices]
    equation = Equation(
        anchors,
        sample.labels,
        contrast,
        contrast_labels,
        {
            "temperature": module.temperature,
            "denominator": module.denominator,
            "weight": weights,
            "reduction": module.reduction,
            "ignore_index": ignore,
        },
        module.negative_sampler,
        draw,
        off,
    )
    verdict = judge(equation, loss.double() / factor, {})
    wrong = verdict.wrong
    if wrong is None and gradient is not None and verdict.gradient is not None:
        by_anchors, allowed = verdict.gradient * factor, verdict.allowed * factor
        wrong = wrong_gradient(
            gradient, emb, sample, ignore, by_anchors, allowed, normalize=module.normalize
        )
    return wrong or _wrong_written(given, known, module)


def _entries(
    emb: Tensor, marked: Tensor, known: Mapping[str, Any], module: Any
) -> tuple[list[Tensor | None], list[Tensor | None], float] | None:
    """What a loss contrasts with, its labels, and how far it may be off; None: that is not sure."""
    contrast: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    off = 0.0
    for source in module.contrast_with:
        if source != "batch":
            held, count = known["state"][source], known["state"][source[:-1] + "_count"]
            written = torch.arange(held.shape[1]) < count[:, None]
            classes = torch.arange(module.bank.num_classes)[:, None]
            contrast.append(held.flatten(0, 1))
            labels.append(torch.where(written, classes, module.ignore_index).flatten())
        elif isinstance(module, RegionContrastLoss):
            num_classes = None if module.bank is None else module.bank.num_classes
            means, own, off = batch_regions(emb, marked, module.ignore_index, num_classes)
            contrast.append(means)
            labels.append(own)
        else:
            contrast.append(None)
            labels.append(None)
    return (contrast, labels, off) if off < 0.1 else None


def batch_regions(
    emb: Tensor, marked: Tensor, ignore: int, num_classes: int | None
) -> tuple[Tensor, Tensor, float]:
    """The regions of a batch, their labels, and how far they may be off.

    Of each image stand as many as the bank has classes, or, without one, as there may be labels:
    a random selection goes by their place.
    """
    images, pixels = marked.shape
    slots = min(pixels, 256) if num_classes is None else num_classes
    means = torch.zeros(images, slots, emb.shape[1], dtype=torch.float64)
    labels = torch.full((images, slots), -1)
    off = 0.0
    places = [0] * images
    for region in regions_of(emb, marked, ignore):
        place = places[region.image] if num_classes is None else region.label
        places[region.image] += 1
        # Rounded to the dtype of the embedding, of which each component is off by half an eps.
        off = max(off, region.off + torch.finfo(emb.dtype).eps)
        if region.mean is not None and place < slots:
            means[region.image, place] = region.mean
            labels[region.image, place] = region.label
    return means.flatten(0, 1), labels.flatten(), off


def sampled_vectors(emb: Tensor, sample: Any, ignore: int) -> Tensor:
    """(K, D) float64 the pixels of a sample; zeros for padding."""
    vectors = pixels_of(emb).flatten(0, 1)[sample.indices]
    return torch.where((sample.labels != ignore)[:, None], vectors, 0.0)


def wrong_anchors(anchors: Tensor, vectors: Tensor, *, normalize: bool) -> str | None:
    """Whether anchors are these vectors, given unit length: but for rounding."""
    if not normalize:
        return None if torch.equal(anchors.double(), vectors) else "the anchors are other pixels"
    true = directions(vectors)[0]
    finest = torch.finfo(torch.promote_types(anchors.dtype, torch.float32)).eps
    allowed = torch.finfo(anchors.dtype).eps * true.abs() + (anchors.shape[1] + 8) * finest
    if not bool(((anchors.double() - true).abs() <= allowed + _tiny(anchors.dtype)).all()):
        return "the anchors are not of unit length, or other pixels"
    return None


def wrong_gradient(
    gradient: Tensor,
    emb: Tensor,
    sample: Any,
    ignore: int,
    by_anchors: Tensor,
    allowed_by_anchors: float,
    *,
    normalize: bool,
) -> str | None:
    """The gradient by the map: that by anchors, turned back by what gave them unit length.

    `allowed_by_anchors` is how far a component of the gradient by the anchors may be off.
    """
    if len(sample.indices) == 0:
        return None
    vectors = sampled_vectors(emb, sample, ignore)
    taken = sample.labels != ignore
    eps, dim = torch.finfo(torch.promote_types(emb.dtype, torch.float32)).eps, vectors.shape[1]
    # In float64 from the start: what is allowed may be less than float32 can hold.
    allowed_norm = allowed_by_anchors * math.sqrt(dim)
    error = torch.full((len(vectors), 1), allowed_norm, dtype=torch.float64)
    if normalize:
        unit, usable = directions(vectors)
        taken = taken & usable
        # In two steps: a length may be more than float64 can hold.
        largest = torch.where(usable[:, None], vectors.abs().amax(dim=1, keepdim=True), 1.0)
        of_largest = torch.where(
            usable[:, None], (vectors / largest).norm(dim=1, keepdim=True), 1.0
        )
        # Two operations of D terms each, and one rounding more where anchors are of 16 bits.
        rounding = 4 * (dim + 8) * eps + 2 * torch.finfo(emb.dtype).eps
        error = (error + rounding * by_anchors.norm(dim=1, keepdim=True)) / of_largest / largest
        along = (by_anchors * unit).sum(dim=1, keepdim=True)
        by_anchors = (by_anchors - along * unit) / of_largest / largest
    expected = torch.zeros_like(pixels_of(emb)).flatten(0, 1)
    allowed = torch.zeros(len(expected), 1, dtype=torch.float64)
    expected[sample.indices[taken]] = by_anchors[taken]
    allowed[sample.indices[taken]] = error[taken] + 4 * _tiny(emb.dtype)
    actual = pixels_of(plain(gradient)).flatten(0, 1)
    off = (actual - expected).abs() - torch.finfo(emb.dtype).eps * expected.abs()
    # What the dtype cannot hold is infinite there.
    beyond = (expected.abs() + allowed) * 2 > torch.finfo(emb.dtype).max
    if bool((~beyond & ~(off <= allowed)).any()):
        most = float((off / allowed.clamp(min=1e-300)).masked_fill(beyond, 0).max())
        return f"the gradient of emb is off by {most:.2g} times what it may be"
    return None


def _wrong_written(given: Mapping[str, Any], known: Mapping[str, Any], module: Any) -> str | None:
    bank = module.bank
    if bank is None:
        return None
    emb, labels = plain(given["emb"]), plain(given["labels"])
    if not (module.training and module.update_bank):
        labels = torch.full_like(labels, -1 if labels.dtype.is_signed else module.ignore_index)
    return wrong_writes(bank, known["state"], emb, labels)


def _tiny(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal


def _same_bits(one: Tensor, other: Tensor) -> bool:
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and one.contiguous().flatten().view(torch.uint8).equal(
        other.contiguous().flatten().view(torch.uint8)
    )
