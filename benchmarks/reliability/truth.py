"""Whether a value is right: against float64, and against the rules in plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.reliability.calls import Call
from pixcontrast import HardAnchorSampler, PixelContrastLoss
from pixcontrast.bank import MemoryBank
from pixcontrast.functional import info_nce


def before(call: Call) -> dict[str, Any]:
    """What the call will change and a judge has to know: the bank."""
    owner = getattr(call.function, "__self__", call.function)
    bank = owner if isinstance(owner, MemoryBank) else getattr(owner, "bank", None)
    if not isinstance(bank, MemoryBank):
        return {}
    copied = {name: value.clone() for name, value in bank.state_dict().items()}
    return {"bank": bank, "state": copied}


def wrong_with(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> str | None:
    """What is wrong with a value, or None."""
    if known and (wrong := _wrong_bank(known["bank"])):
        return wrong
    if call.target == "info_nce":
        return _wrong_info_nce(call.arguments, result, gradients)
    if call.target == "loss":
        return _wrong_loss(call, known, result, gradients)
    if call.target == "sampler":
        return _wrong_sample(call.function, call.arguments, result)
    if call.target == "bank.update":
        return _wrong_update(call.arguments, known)
    if call.target == "head":
        return _wrong_embedding(call.arguments["features"], result)
    return None


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).resolve_neg()


def _seen(*values: Any) -> bool:
    return all(v.device.type == "cpu" for v in values if isinstance(v, Tensor))


def _wrong_info_nce(
    given: Mapping[str, Any], loss: Tensor, gradients: Mapping[str, Tensor]
) -> str | None:
    anchors, labels = given["anchors"], given["anchor_labels"]
    rows = labels.shape if given["reduction"] == "none" else ()
    if loss.shape != torch.Size(rows):
        return f"the loss has the shape {tuple(loss.shape)}"
    if not _seen(anchors):
        return None
    contrast, contrast_labels = given["contrast"], given["contrast_labels"]
    if contrast is None or isinstance(contrast, Tensor):
        contrast, contrast_labels = [contrast], [contrast_labels]
    if contrast_labels is None:
        contrast_labels = [None] * len(contrast)
    return wrong_value(
        _plain(loss),
        {"anchors": gradients.get("anchors")},
        anchors=_plain(anchors),
        labels=labels,
        contrast=[None if c is None else _plain(c) for c in contrast],
        contrast_labels=list(contrast_labels),
        options={name: given[name] for name in _OPTIONS},
        mined=given["mining"] is not None,
    )


_OPTIONS = ("temperature", "denominator", "weight", "reduction", "ignore_index")


def wrong_value(
    loss: Tensor,
    gradients: Mapping[str, Tensor | None],
    *,
    anchors: Tensor,
    labels: Tensor,
    contrast: list[Tensor | None],
    contrast_labels: list[Tensor | None],
    options: Mapping[str, Any],
    mined: bool,
) -> str | None:
    """NaN from finite similarities, or a value further from float64 than rounding explains."""
    ignore = options["ignore_index"]
    rounded = [None if c is None else _rounded(c, anchors.dtype) for c in contrast]
    taking_part = [_taking_part(anchors.double(), labels, ignore)]
    for entries, own in zip(rounded, contrast_labels, strict=True):
        if entries is not None and own is not None:
            taking_part.append(_taking_part(entries, own, ignore))
    if not all(bool(torch.isfinite(part).all()) for part in taking_part):
        return None
    longest = [float(p.norm(dim=1).max()) if len(p) else 0.0 for p in taking_part]
    tau, wide = float(options["temperature"]), max(longest[1:], default=0.0)
    wide = max(wide, longest[0]) if any(c is None for c in contrast) else wide
    compute = torch.finfo(torch.float64 if anchors.dtype == torch.float64 else torch.float32)
    size = longest[0] * wide * max(1.0, 1.0 / tau)
    if not size < compute.max / 8 or not 1.0 / tau < compute.max:
        return None  # a component of a product may overflow on its way
    if bool(loss.isnan().any()):
        return "the loss is NaN"
    gradient = gradients["anchors"]
    steep = max(longest[0], wide, 1.0) / tau * max(len(anchors), 1)
    if gradient is not None and steep < compute.max / 1e3 and bool(gradient.isnan().any()):
        return "the gradient is NaN"
    if mined or max(longest[0], wide) > 1e6:
        return None
    weight = options["weight"]
    heaviest = (
        float(weight.detach().double().max()) if weight is not None and weight.numel() else 1.0
    )
    if heaviest > 1e6 or heaviest < 1e-6:
        return None

    leaf = anchors.double().clone().requires_grad_()
    arguments = (leaf, labels, rounded, contrast_labels)
    expected = info_nce(*arguments, backend="dense", **options)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    similarity = longest[0] * wide / tau
    num_terms = sum(len(anchors) if c is None else len(c) for c in contrast) + len(anchors) + 20
    # docs/numerics.md: rounding of the similarities, and of sums of so many terms.
    delta = (anchors.shape[1] + 8) * compute.eps * similarity
    each = 4 * (delta + num_terms * compute.eps * (1 + similarity + math.log(num_terms)))
    count = len(anchors) * max(1.0, heaviest) if options["reduction"] != "mean" else 1.0
    error = (loss.double() - expected.detach()).abs()
    if error.numel() and not float(error.max()) <= each * count + compute.tiny:
        return f"the loss is off by {float(error.max()):.2e}, more than {each * count:.2e}"
    if gradient is None or delta > 0.05:
        return None
    slope = max(longest[0], wide) / tau * count * (len(anchors) if count > 1 else 1)
    allowed = slope * 2 * each + 4 * _eps(anchors.dtype) * float(_largest(expected_gradient))
    allowed += 4 * torch.finfo(anchors.dtype).smallest_normal
    off = float(_largest(gradient.double() - expected_gradient))
    if math.isfinite(off) and off > allowed:
        return f"the gradient is off by {off:.2e}, more than {allowed:.2e}"
    return None


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().max() if tensor.numel() else tensor.new_zeros(())


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _rounded(entries: Tensor, dtype: torch.dtype) -> Tensor:
    """Entries as operands: in the anchors' dtype, where they saturate."""
    limit = torch.finfo(dtype).max
    if torch.finfo(entries.dtype).max > limit:
        entries = entries.clamp(-limit, limit)
    return entries.to(dtype).double()


def _taking_part(vectors: Tensor, labels: Tensor, ignore: int) -> Tensor:
    wide = labels.to(torch.int64)
    return vectors[(wide >= 0) & (wide != ignore)]


def _wrong_loss(
    call: Call, known: Mapping[str, Any], result: Any, gradients: Mapping[str, Tensor]
) -> str | None:
    loss_module, given = call.function, call.arguments
    if not call.arguments["return_anchors"]:
        return None
    loss, sample = result
    emb = _plain(given["emb"])
    if not _seen(emb):
        return None
    pixels = (emb.T[None] if emb.ndim == 2 else emb).flatten(2).transpose(1, 2).flatten(0, 1)
    assert isinstance(loss_module, torch.nn.Module)
    module: Any = loss_module
    ignore = module.ignore_index
    anchors = pixels[sample.indices] if len(pixels) else pixels
    anchors = torch.where((sample.labels != ignore)[:, None], anchors, 0)
    if not bool(torch.isfinite(anchors).all()):
        return None
    if module.normalize:
        if bool(loss.isnan().any()):
            return "the loss is NaN"
        gradient = gradients.get("emb")
        if gradient is not None and emb.dtype != torch.float16 and bool(gradient.isnan().any()):
            return "the gradient is NaN"
        largest = anchors.double().abs().amax(dim=1, keepdim=True)
        anchors = anchors.double() / largest.masked_fill(largest <= 1e-30, math.inf)
        anchors = F.normalize(anchors, dim=1, eps=0.1).to(emb.dtype)
    if not isinstance(module, PixelContrastLoss) or given["weight"] is not None:
        return None
    contrast: list[Tensor | None] = []
    labels: list[Tensor | None] = []
    for source in module.contrast:
        if source == "batch":
            contrast.append(None)
            labels.append(None)
            continue
        bank = known["bank"]
        held, count = known["state"][source], known["state"][source[:-1] + "_count"]
        written = torch.arange(held.shape[1]) < count[:, None]
        own = torch.where(written, torch.arange(bank.num_classes)[:, None], ignore)
        contrast.append(held.flatten(0, 1))
        labels.append(own.flatten())
    factor = module.temperature / (module.base_temperature or module.temperature)
    # Anchors were given unit length in the dtype they are in: one more rounding of each.
    if emb.dtype in (torch.float16, torch.bfloat16) or module.temperature < 0.05:
        return None
    return wrong_value(
        _plain(loss) / factor,
        {"anchors": None},
        anchors=anchors,
        labels=sample.labels,
        contrast=contrast,
        contrast_labels=labels,
        options={
            "temperature": module.temperature,
            "denominator": module.denominator,
            "weight": None,
            "reduction": module.reduction,
            "ignore_index": ignore,
        },
        mined=module.negative_sampler is not None,
    )


def _wrong_sample(sampler: Any, given: Mapping[str, Any], sample: Any) -> str | None:
    labels = given["labels"]
    if not _seen(labels):
        return None
    rows = labels.to(torch.int64).tolist()
    looks = isinstance(sampler, HardAnchorSampler) and given["preds"] is not None
    predicted = given["preds"].to(torch.int64).tolist() if looks else rows
    groups: dict[tuple[int, int], list[int]] = {}
    for image, row in enumerate(rows):
        for place, label in enumerate(row):
            if label >= 0 and label != given["ignore_index"]:
                groups.setdefault((image, label), []).append(image * len(row) + place)
    groups = {g: p for g, p in groups.items() if len(p) >= sampler.min_pixels}
    flat = [label for row in rows for label in row]
    flat_predicted = [label for row in predicted for label in row]
    size = min(sampler.max_anchors, len(flat))
    found = [
        (index, label)
        for index, label in zip(sample.indices.tolist(), sample.labels.tolist(), strict=True)
        if label != given["ignore_index"]
    ]
    if len(sample.indices) != size or len({index for index, _ in found}) != len(found):
        return "the sample has another size, or a pixel twice"
    if any(flat[index] != label for index, label in found):
        return "a sampled pixel has another label"
    views = min(max(sampler.max_anchors // max(len(groups), 1), 1), sampler.max_views)
    taken: dict[tuple[int, int], list[int]] = {}
    for index, label in found:
        taken.setdefault((index // max(len(rows[0]), 1), label), []).append(index)
    if not set(taken) <= set(groups) or len(taken) != min(len(groups), sampler.max_anchors):
        return "the sample has other groups"
    for group, indices in taken.items():
        if len(indices) != min(views, len(groups[group])):
            return "a group gave another number of pixels"
        if isinstance(sampler, HardAnchorSampler):
            hard = [i for i in groups[group] if flat_predicted[i] != flat[i]]
            wanted = sampler.hard_fraction * len(indices)
            easy = len(groups[group]) - len(hard)
            least, most = (
                min(max(round_(wanted), len(indices) - easy), len(hard))
                for round_ in (math.floor, math.ceil)
            )
            if not least <= len(set(indices) & set(hard)) <= most:
                return "a group gave another number of hard pixels"
    return None


def _wrong_bank(bank: MemoryBank) -> str | None:
    for queue in ("pixels", "regions"):
        count, held = bank.count(queue), getattr(bank, queue)
        if bool(((count < 0) | (count > bank.slots(queue))).any()):
            return "a count of the bank is out of its range"
        written = held[torch.arange(held.shape[1]) < count[:, None]].double()
        if written.numel() and not bool(((written.norm(dim=1) - 1).abs() < 2**-7).all()):
            return "a vector of the bank is not of unit length"
    return None


def _wrong_update(given: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """The counts alone; the state machine looks at what was written."""
    bank, state = known["bank"], known["state"]
    emb, labels = _plain(given["emb"]), _plain(given["labels"])
    if labels.numel() == 0 or emb.numel() == 0:
        return None
    if emb.ndim == 2:
        emb, labels = emb.T[None], labels[None]
    picked = F.interpolate(labels[:, None].double(), size=emb.shape[2:], mode="nearest")
    classes, flat = picked.flatten(1).to(torch.int64), emb.flatten(2).double()
    # In the dtype that looks: what is beyond float32 there is infinite.
    if emb.dtype != torch.float64:
        flat = flat.float().double()
    largest = flat.abs().amax(dim=1)
    usable = torch.isfinite(flat).all(dim=1) & (largest > 1e-30) & (classes != bank.ignore_index)
    for label in range(bank.num_classes):
        of_image = (usable & (classes == label)).sum(dim=1).clamp(max=bank.pixels_per_image)
        expected = int(state["pixel_count"][label]) + int(of_image.sum())
        if int(bank.pixel_count[label]) != min(expected, bank.pixel_slots):
            return "the bank took another number of pixels"
    return None


def _wrong_embedding(features: Tensor, embedding: Tensor) -> str | None:
    if embedding.shape != (features.shape[0], 4, *features.shape[2:]):
        return f"the embedding has the shape {tuple(embedding.shape)}"
    if not _seen(features) or float(_largest(_plain(features).double())) > 1e30:
        return None
    if bool(torch.isfinite(features).all()) and bool(embedding.isnan().any()):
        return "the embedding is NaN"
    return None
