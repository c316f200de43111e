"""Random calls of the public names, by one process or by several ranks together.

A number determines the call. Options are the same on all ranks, data is each rank's own. Where
something is spoiled, all ranks get the same data too: either all of them refuse it or none does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reliability.options import (
    CLASSES,
    DIM,
    IGNORE,
    Arguments,
    bank_options,
    head_options,
    mining_options,
    sampler_options,
    temperature_in,
)
from benchmarks.reliability.values import (
    FLOATS,
    INTEGERS,
    LABELS,
    anything,
    disguised,
    filled,
    laid_out,
    number_in,
    tensor_in,
    thing_in,
)
from pixcontrast import (
    HardAnchorSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast.functional import info_nce


class Call(NamedTuple):
    """The call of one rank.

    Attributes:
        target: name of what is called.
        function: `info_nce`, or the class whose object is called.
        given: arguments of the call under `"call"`, and the options of each object that it needs.
        fills: arguments of earlier `bank.update` calls.
        training: whether a loss is in training mode.
        seed: of the default generator.
        spoiled: names of arguments and options that may be unsuitable.
    """

    target: str
    function: Callable[..., Any]
    given: dict[str, Arguments]
    fills: tuple[Arguments, ...] = ()
    training: bool = True
    seed: int = 0
    spoiled: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.target}({', '.join(self.spoiled)})"


def make_call(number: int, rank: int = 0, size: int = 1) -> Call:
    """Make the call of a number, for one rank of `size`; up to three values are spoiled."""
    shared = Random(number)
    num_spoiled = shared.choice((0, 0, 0, 0, 0, 1, 1, 2, 3))
    own = Random(f"{number} {0 if num_spoiled else rank}")
    target = shared.choice(TARGETS if size == 1 else RANK_TARGETS)
    call = MAKERS[target](shared, own, size)
    # Any callable is a sampler; ranks that belong to different groups would wait forever.
    kept = {"anchor_sampler", *(("gather", "process_group") if size > 1 else ())}
    places = [(of, name) for of, values in call.given.items() for name in values]
    places = [place for place in places if place[1] not in kept]
    spoiled = shared.sample(places, min(num_spoiled, len(places)))
    for of, name in spoiled:
        call.given[of][name] = spoil(shared, call.given[of][name])
    seed = Random(f"{number} {rank} seed").getrandbits(32)
    return call._replace(target=target, seed=seed, spoiled=tuple(name for _, name in spoiled))


def spoil(random: Random, value: Any) -> Any:
    """Draw another value, in most cases of the same kind, so that every check is reached."""
    if isinstance(value, Tensor) and random.random() < 0.7:
        if random.random() < 0.5 and not value.is_nested:
            return disguised(random, filled(random, value.shape, value.dtype))
        return tensor_in(random, value.dtype if random.random() < 0.6 else None)
    if isinstance(value, (int, float)) and random.random() < 0.7:
        return number_in(random)
    if isinstance(value, (str, tuple, type(None))) and random.random() < 0.5:
        return thing_in(random)
    return anything(random)


def _info_nce(shared: Random, own: Random, size: int) -> Call:
    rows, columns, dim = (own.choice((0, 1, 2, 5, 9, 30)) for _ in range(3))

    def vectors(count: int) -> Tensor:
        return disguised(own, filled(own, (count, max(1, dim)), own.choice(FLOATS)))

    def labels(count: int) -> Tensor:
        return disguised(own, _labels(own, (count,), dtypes=INTEGERS))

    arguments: Arguments = {"anchors": vectors(rows), "anchor_labels": labels(rows)}
    kind = own.choice(("itself", "tensor", "sequence"))
    contrast: Any = None
    of_contrast: Any = None
    if kind == "tensor":
        contrast, of_contrast = vectors(columns), labels(columns)
    elif kind == "sequence":
        present = [own.random() < 0.6 for _ in range(own.choice((0, 1, 2, 3)))]
        contrast = own.choice((list, tuple))(vectors(columns) if one else None for one in present)
        of_contrast = [labels(columns) if one else None for one in present]
    arguments |= {
        "contrast": contrast,
        "contrast_labels": of_contrast,
        "temperature": temperature_in(own),
        "denominator": own.choice(("negatives", "all")),
        "weight": own.choice((None, None, _weight(own, (rows,)))),
        "negative_sampler": None,
        "generator": own.choice((None, _generator(own), _generator(own))),
        "reduction": own.choice(("mean", "sum", "none")),
        "ignore_index": IGNORE,
        "backend": own.choice(("dense", "tiled", "tiled", "auto")),
    }
    return Call("", info_nce, {"call": arguments, **mining_options(own)})


def _loss(shared: Random, own: Random, size: int) -> Call:
    kind = shared.choice((PixelContrastLoss, RegionContrastLoss))
    bank = bank_options(shared, size) if shared.random() < 0.6 else {}
    sources = ["batch"]
    if kind is PixelContrastLoss and shared.random() < 0.2:
        sources = ["image"]
    if bank and bank["region_slots"]:
        sources.append("regions")
    if bank and bank["pixel_slots"] and bank["pixels_per_image"] and kind is PixelContrastLoss:
        sources.append("pixels")
    gather = size > 1 and shared.random() < 0.8
    options = {
        "temperature": temperature_in(shared),
        "base_temperature": shared.choice((None, None, 0.07, 1)),
        "ignore_index": IGNORE,
        "anchor_sampler": None,
        "negative_sampler": None,
        "bank": None,
        "contrast_with": tuple(shared.sample(sources, shared.randint(1, len(sources)))),
        "projection": None,
        "denominator": shared.choice(("negatives", "all")),
        "normalize": shared.random() < 0.9,
        "reduction": shared.choice(("mean", "mean", "sum", "sum" if gather else "none")),
        "update_bank": shared.random() < 0.8,
        "gather": gather,
        "process_group": None,
        "validate": shared.random() < 0.2,
        "backend": shared.choice(("dense", "tiled", "auto")),
    }
    if shared.random() < 0.3:
        options["contrast_with"] = None
    given = {"loss": options, **mining_options(shared), **({"bank": bank} if bank else {})}
    if shared.random() < 0.4:
        given["head"] = head_options(shared, size)
    if shared.random() < 0.8:
        given["sampler"] = sampler_options(shared, shared.choice(SAMPLERS))
    dtype, weighted, differentiated = (
        shared.choice(FLOATS),
        *(shared.random() < p for p in (0.3, 0.7)),
    )
    training = shared.random() < 0.8
    fills = _fills(own, shared.choice((0, 1, 3)) if bank else 0)
    # Points are not parts of an image.
    arguments, shape = _data(own, dtype, size, 1 if "image" in sources else 0)
    if differentiated and not arguments["emb"].is_inference():
        arguments["emb"].requires_grad_()
    draw = _generator(own)
    logits = torch.randn(shape[0], CLASSES, *shape[1:], generator=draw)
    classes = torch.randint(0, CLASSES, shape, generator=draw).to(own.choice(LABELS))
    arguments |= {
        "preds": own.choice((None, laid_out(own, _with_channel(own, classes)), logits)),
        "weight": _with_channel(own, _weight(own, shape)) if weighted else None,
        "generator": own.choice((None, draw)),
        "return_anchors": shared.random() < 0.5,
    }
    return Call("", kind, {**given, "call": arguments}, fills, training)


def _bank(shared: Random, own: Random, size: int) -> Call:
    given = {"bank": bank_options(shared, size), "queue": {"queue": shared.choice(QUEUES)}}
    dtype, fills = shared.choice(FLOATS), _fills(own, shared.choice((0, 1, 3)))
    arguments, _ = _data(own, dtype, size)
    arguments["generator"] = own.choice((None, _generator(own)))
    return Call("", MemoryBank, {**given, "call": arguments}, fills)


def _sampler(shared: Random, own: Random, size: int) -> Call:
    kind = own.choice(SAMPLERS)
    shape = (own.choice((0, 1, 2, 3)), own.choice((0, 1, 5, 20)))
    labels, preds = (disguised(own, _labels(own, shape)) for _ in range(2))
    arguments = {
        "labels": labels,
        "preds": own.choice((None, preds)),
        "ignore_index": IGNORE,
        "generator": own.choice((None, _generator(own))),
    }
    return Call("", kind, {"sampler": sampler_options(own, kind), "call": arguments})


def _head(shared: Random, own: Random, size: int) -> Call:
    options = {**head_options(own, size), "dim": own.choice((1, 4))}
    features = _data(own, torch.float32, size)[0]["emb"].detach()
    return Call("", ProjectionHead, {"head": options, "call": {"features": features}})


def _data(
    random: Random, dtype: torch.dtype, size: int, least_dims: int = 0
) -> tuple[Arguments, tuple[int, ...]]:
    """Draw an embedding and its labels, of any size and memory layout, and the labels' shape."""
    num_dims = max(least_dims, random.choice((0, 1, 2, 2, 3)))
    spatial = tuple(random.choice((1, 2, 3, 5, 5)) for _ in range(num_dims))
    images = random.choice((0, 1, 2, 2, 3) if spatial else (0, 1, 7, 12))
    factor = random.choice((1, 2))
    shape = (images, *(length * factor for length in spatial))
    kind = random.choice(("any", "any", "any", "any", "ignored", "one class"))
    labels = _with_channel(random, _labels(random, shape, kind))
    emb = filled(random, (images, DIM, *spatial), dtype)
    change = disguised if size == 1 else laid_out
    return {"emb": change(random, emb), "labels": change(random, labels)}, shape


def _fills(random: Random, count: int) -> tuple[Arguments, ...]:
    return tuple(_data(random, random.choice(FLOATS), 2)[0] for _ in range(count))


def _labels(
    random: Random,
    shape: tuple[int, ...],
    kind: str = "any",
    dtypes: Sequence[torch.dtype] = LABELS,
) -> Tensor:
    """Draw labels, in part ignored. For bool, every label but 0 becomes 1."""
    draw, dtype = _generator(random), random.choice(dtypes)
    labels = torch.randint(0, CLASSES, shape, generator=draw)
    if kind == "one class":
        labels[:] = random.randrange(CLASSES)
    is_negative = dtype.is_signed and (dtype == torch.int8 or random.random() < 0.3)
    ignored = torch.rand(shape, generator=draw) < (1 if kind == "ignored" else 0.15)
    return labels.masked_fill(ignored, -1 if is_negative else IGNORE).to(dtype)


def _weight(random: Random, shape: tuple[int, ...]) -> Tensor:
    """Draw weights of any dtype: a part, all or none of them 0."""
    draw = _generator(random)
    weight = 3 * torch.rand(shape, generator=draw)
    is_zero = torch.rand(shape, generator=draw) < random.choice((0, 0.4, 0.4, 1))
    weight = weight.masked_fill(is_zero, 0).to(random.choice((*FLOATS, *LABELS)))
    return laid_out(random, weight)


def _with_channel(random: Random, pixel_map: Tensor) -> Tensor:
    """Give some maps a channel dimension of one."""
    return pixel_map[:, None] if random.random() < 0.2 else pixel_map


def _generator(random: Random) -> torch.Generator:
    return torch.Generator().manual_seed(random.getrandbits(32))


QUEUES = ("pixels", "regions")
SAMPLERS: tuple[Any, ...] = (HardAnchorSampler, RandomAnchorSampler)
MAKERS = {
    "info_nce": _info_nce,
    "loss": _loss,
    "bank.update": _bank,
    "sampler": _sampler,
    "head": _head,
}
RANK_TARGETS = (*["loss"] * 4, "bank.update")
TARGETS = (*["info_nce"] * 4, *RANK_TARGETS, "bank.update", "sampler", "head")
