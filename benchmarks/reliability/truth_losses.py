"""Whether a loss module is correct: its sample, anchors, value, gradient, and its bank.

Every step is repeated from the arguments, in float64 and as plainly as possible; only the equation
is the package's own textbook form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.calls import Call
from benchmarks.reliability.truth_banks import State, check_writes
from benchmarks.reliability.truth_equation import Equation, Verdict, copy_of, judge
from benchmarks.reliability.truth_pixels import (
    directions,
    expect,
    flat,
    flat_predictions,
    is_readable,
    pixels_of,
    plain,
    regions_of,
    same_bits,
    without_channel,
)
from benchmarks.reliability.truth_samples import check_sample
from pixcontrast import AnchorSample, RegionContrastLoss

OPTIONS = (
    *("temperature", "base_temperature", "ignore_index", "anchor_sampler", "negative_sampler"),
    *("contrast_with", "denominator", "normalize", "reduction"),
)


class LossStep(NamedTuple):
    """A call of a loss on one rank, and its results, as plain tensors.

    Attributes:
        kind: class of the loss.
        options: those of `OPTIONS`, with all defaults filled in.
        emb, labels, preds, weight: the arguments.
        sample, anchors, loss, gradient: the results; `gradient` is by `emb`.
        bank: the bank's state before the call; empty without a bank.
        num_classes: of the bank; None without one.
        draw: the generator before a selection is drawn, or None if it is not known.
    """

    kind: type
    options: Mapping[str, Any]
    emb: Tensor
    labels: Tensor
    preds: Tensor | None
    weight: Tensor | None
    sample: AnchorSample
    anchors: Tensor
    loss: Tensor
    gradient: Tensor | None
    bank: State
    num_classes: int | None
    draw: torch.Generator | None

    @property
    def ignore(self) -> int:
        """The label to ignore."""
        ignore: int = self.options["ignore_index"]
        return ignore

    @property
    def factor(self) -> float:
        """The factor τ / base_temperature on the loss."""
        tau = float(self.options["temperature"])
        return tau / float(self.options["base_temperature"] or tau)

    @property
    def normalize(self) -> bool:
        """Whether anchors get unit length."""
        return bool(self.options["normalize"])

    def flat_labels(self) -> Tensor:
        """Return the labels (B, P) at the size of the embedding, ignored where the weight is 0."""
        labels = flat(self.labels, self.emb).to(torch.int64)
        if self.weight is None:
            return labels
        return labels.masked_fill(flat(self.weight, self.emb) == 0, self.ignore)

    def flat_preds(self) -> Tensor | None:
        """Return the predicted classes at that resolution."""
        return None if self.preds is None else flat_predictions(self.preds, self.emb)

    def anchor_weight(self) -> Tensor | None:
        """Return the weights of the anchors."""
        if self.weight is None:
            return None
        return flat(self.weight, self.emb).flatten()[self.sample.indices]

    def vectors(self) -> Tensor:
        """Return the sampled pixels (K, D) in float64; zeros for padding."""
        vectors = pixels_of(self.emb).flatten(0, 1)[self.sample.indices]
        return torch.where((self.sample.labels != self.ignore)[:, None], vectors, 0.0)


def check_loss(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> None:
    """Check the result of a loss module in one process."""
    given, module = call.arguments, call.function
    if not is_readable(given["emb"], given["labels"], given["preds"], given["weight"]):
        return
    loss, sample, made = _with_anchors(module, given, known, result)
    emb = plain(given["emb"])
    labels, preds, weight = (
        None if given[name] is None else without_channel(plain(given[name]), emb)
        for name in ("labels", "preds", "weight")
    )
    assert labels is not None
    step = LossStep(
        type(made),
        {name: getattr(made, name) for name in OPTIONS},
        *(emb, labels, preds, weight, sample, plain(made._call.anchors), plain(loss)),
        gradients.get("emb"),
        known.get("state", {}),
        None if made.bank is None else made.bank.num_classes,
        copy_of(known["draw"]),
    )
    finite = check_sampling(step)
    _check_repeats(step)
    if finite:
        check_no_nan(step)
        equation = equation_of([step], [0])
        if equation is not None:
            verdict = judge(equation, step.loss.double() / step.factor, {})
            check_gradient(step, verdict, step.factor)
    if made.bank is not None:
        labels = step.flat_labels().view(emb.shape[:1] + emb.shape[2:])
        if not (made.training and made.update_bank):
            labels = torch.full_like(labels, -1)
        check_writes(made.bank, known["state"], emb, labels)


def check_sampling(step: LossStep) -> bool:
    """Check sample and anchors; returns whether the sampled pixels are finite."""
    sampler, labels = step.options["anchor_sampler"], step.flat_labels()
    check_sample(sampler, labels, step.flat_preds(), step.ignore, step.sample)
    vectors = step.vectors()
    finite = bool(torch.isfinite(vectors).all())
    if finite and not step.normalize:
        expect(torch.equal(step.anchors.double(), vectors), "the anchors are other pixels")
    elif finite:
        true, dtype = directions(vectors)[0], step.anchors.dtype
        finest = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        info = torch.finfo(dtype)
        allowed = info.eps * true.abs() + (true.shape[1] + 8) * finest + info.smallest_normal
        close = bool(((step.anchors.double() - true).abs() <= allowed).all())
        expect(close, "the anchors are not of unit length, or other pixels")
    return finite


def check_no_nan(step: LossStep) -> None:
    """Check that finite pixels give no NaN; without `normalize` similarities may overflow."""
    if step.normalize:
        expect(not bool(step.loss.isnan().any()), "the loss is NaN")
        if step.gradient is not None and step.emb.dtype != torch.float16:
            expect(not bool(step.gradient.isnan().any()), "the gradient is NaN")


def equation_of(
    steps: Sequence[LossStep], own: Sequence[int], sharded: bool = False
) -> Equation | None:
    """Build the equation of the anchors of some ranks; None if regions are not certain.

    Args:
        steps: those of all ranks.
        own: ranks whose anchors and batches take part.
        sharded: whether the bank's entries are those of all ranks together.
    """
    first = steps[own[0]]
    contrast: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    off = 0.0
    for source in first.options["contrast_with"]:
        if source != "batch":
            for step in steps if sharded else steps[:1]:
                held, count = step.bank[source], step.bank[source[:-1] + "_count"]
                written = torch.arange(held.shape[1]) < count[:, None]
                classes = torch.arange(len(held))[:, None]
                contrast.append(held.flatten(0, 1))
                labels.append(torch.where(written, classes, first.ignore).flatten())
        elif issubclass(first.kind, RegionContrastLoss):
            for rank in own:
                means, of_means, off_by = _batch_regions(steps[rank])
                contrast.append(means)
                labels.append(of_means)
                off = max(off, off_by)
        else:
            contrast.append(None)
            labels.append(None)
    if off >= 0.1:
        return None
    weights = [weight for rank in own if (weight := steps[rank].anchor_weight()) is not None]
    return Equation(
        torch.cat([steps[rank].anchors for rank in own]),
        torch.cat([steps[rank].sample.labels.to(torch.int64) for rank in own]),
        contrast,
        labels,
        {
            "temperature": float(first.options["temperature"]),
            "denominator": first.options["denominator"],
            "weight": torch.cat(weights) if weights else None,
            "reduction": first.options["reduction"],
            "ignore_index": first.ignore,
        },
        first.options["negative_sampler"],
        first.draw,
        off,
    )


def check_gradient(
    step: LossStep,
    verdict: Verdict,
    factor: float,
    part: slice = slice(None),
    more: float = 0.0,
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
    emb, sample, vectors = step.emb, step.sample, step.vectors()
    by_anchors = verdict.gradient[part] * factor
    info, dim = torch.finfo(emb.dtype), vectors.shape[1]
    eps = torch.finfo(torch.promote_types(emb.dtype, torch.float32)).eps
    taken = sample.labels != step.ignore
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
        rounding = 4 * (dim + 8) * eps + 2 * info.eps
        error = (error + rounding * by_anchors.norm(dim=1, keepdim=True)) / relative / largest
        along = (by_anchors * unit).sum(dim=1, keepdim=True)
        by_anchors = (by_anchors - along * unit) / relative / largest
    expected = torch.zeros_like(pixels_of(emb)).flatten(0, 1)
    allowed = torch.zeros(len(expected), 1, dtype=torch.float64)
    expected[sample.indices[taken]] = by_anchors[taken]
    allowed[sample.indices[taken]] = error[taken] + 4 * info.smallest_normal
    actual = pixels_of(plain(step.gradient)).flatten(0, 1)
    off = (actual - expected).abs() - info.eps * expected.abs()
    # Values beyond the range of the dtype are infinite.
    beyond = (expected.abs() + allowed) * 2 > info.max
    most = float((off / allowed.clamp(min=1e-300)).masked_fill(beyond, 0).max())
    close = not bool((~beyond & ~(off <= allowed)).any())
    expect(close, f"the gradient of emb is off by {most:.2g} times the allowed error")


def _with_anchors(
    module: Any, given: Mapping[str, Any], known: Mapping[str, Any], result: Any
) -> tuple[Tensor, AnchorSample, Any]:
    """Return the loss, its sample and the module that made them.

    A call without `return_anchors` is repeated with it, on a copy with the former bank.
    """
    if given["return_anchors"]:
        return *result, module
    # The state of the last call is not needed, and its class may not support copies.
    made = copy.deepcopy(module, {id(module._call): None})
    if made.bank is not None:
        for name, value in made.bank.state_dict().items():
            value.copy_(known["state"][name])
    draw = copy_of(known["draw"])
    loss, sample = made(**{**given, "generator": draw, "return_anchors": True})
    expect(same_bits(plain(loss), plain(result)), "with return_anchors the loss is another")
    if made.bank is not None:
        states = (bank.state_dict().values() for bank in (made.bank, module.bank))
        same = all(same_bits(one, other) for one, other in zip(*states, strict=True))
        expect(same, "with return_anchors the bank is another")
    return loss, sample, made


def _check_repeats(step: LossStep) -> None:
    """Sample again from the same state; leaves `step.draw` as a negative sampler finds it."""
    labels = step.flat_labels()
    again = step.options["anchor_sampler"](
        torch.where(labels < 0, step.ignore, labels),
        step.flat_preds(),
        ignore_index=step.ignore,
        generator=step.draw,
    )
    same = torch.equal(again.indices, step.sample.indices)
    same = same and same_bits(again.labels, step.sample.labels)
    expect(same, "from the same state another sample is drawn")


def _batch_regions(step: LossStep) -> tuple[Tensor, Tensor, float]:
    """Return the regions of a batch, their labels, and the allowed error.

    Each image has one row for each class of the bank; without a bank, for each possible label. A
    random selection depends on the position of the rows.
    """
    labels = step.flat_labels()
    images, pixels = labels.shape
    slots = min(pixels, 256) if step.num_classes is None else step.num_classes
    means = torch.zeros(images, slots, step.emb.shape[1], dtype=torch.float64)
    of_means = torch.full((images, slots), -1)
    off, following = 0.0, [0] * images
    for region in regions_of(step.emb, labels, step.ignore):
        row = following[region.image] if step.num_classes is None else region.label
        following[region.image] += 1
        # Rounding to the dtype of the embedding adds half an eps for each component.
        off = max(off, region.off + torch.finfo(step.emb.dtype).eps)
        if region.mean is not None and row < slots:
            means[region.image, row] = region.mean
            of_means[region.image, row] = region.label
    return means.flatten(0, 1), of_means.flatten(), off
