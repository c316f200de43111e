"""Make a call: what it returns, or how it was refused, and whether it changed its arguments."""

from __future__ import annotations

import re
import resource
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import pixcontrast
from benchmarks.reliability.calls import Call
from benchmarks.reliability.options import Arguments
from benchmarks.reliability.values import FLOATS
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    ProjectionHead,
    RandomAnchorSampler,
)

Answer = dict[str, Any]
"""How a call ended, what is wrong with that or None, and the results by name."""

SECONDS = 30
"""Time limit of a call. All sizes are tiny, so a longer call is a hang."""
ROOM = 2 << 30
"""Bytes beyond the current size of the process; no suitable call needs more."""
MOST_NUMBERS = 250
"""Maximum number of elements of the embeddings, for Triton's interpreter."""
PACKAGE = str(Path(pixcontrast.__file__).parent)
NAMED = re.compile(r"[\w, ]+(\[\d+\])?: ")
"""The start of the package's error messages: the name of the argument."""
RULES_OF_PYTORCH = (
    "Inference tensors cannot be saved",  # the message names the fix
    "Expected more than 1 value per channel when training",  # batch statistics of one row
)
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory")
LOSS_OPTIONS = (
    *("temperature", "base_temperature", "ignore_index", "anchor_sampler", "negative_sampler"),
    *("contrast_with", "denominator", "normalize", "reduction", "gather", "update_bank"),
)


def answer_of(call: Call, group: Any = None) -> Answer:
    """Make a call, on all ranks of a group together; `None` is the world, or this process.

    Returns:
        `"ended"`, which is `"value"`, `"refused"`, `"refused by PyTorch"`, `"no memory"` or
        `"raised"`; `"wrong"`, a description of the defect or None; and the results of `perform`.
    """
    tensors = [tensor for _, tensor in named_tensors(call.given["call"])]
    before = [_seen(tensor) for tensor in tensors]
    try:
        with _time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = {"ended": "value", "wrong": None, **perform(call, group)}
    except Exception as error:
        ended, wrong = _judge_error(error)
        if ended == "refused" and not call.spoiled and not _has_unusual_tensor(call):
            wrong = f"a suitable call is refused: {error}"
        answer = {"ended": ended, "wrong": wrong}
    for tensor, was in zip(tensors, before, strict=True):
        for field, value in _seen(tensor).items():
            if value != was[field] and answer["wrong"] is None:
                answer["wrong"] = f"the {field} of an argument has changed"
    return answer


def perform(call: Call, group: Any) -> Answer:
    """Build the objects of a call and make it; returns the results as plain tensors."""
    torch.default_generator.manual_seed(call.seed)
    given = {name: dict(values) for name, values in call.given.items()}
    arguments, draw = given["call"], torch.default_generator
    if isinstance(arguments.get("generator"), torch.Generator):
        draw = arguments["generator"] = copy_of(arguments["generator"].get_state())
    if group is not None:
        for name in {"loss", "bank"} & given.keys():
            given[name]["process_group"] = group
    mining = HardNegativeSampler(**given["mining"]) if "mining" in given else None
    if call.target == "info_nce":
        if arguments["negative_sampler"] is None:
            arguments["negative_sampler"] = mining
        state, loss = draw.get_state(), call.function(**arguments)
        found = _gradients(loss, dict(named_tensors(arguments)))
        return {"loss": plain(loss), "gradients": found, "draw": state, "mining": mining}
    if call.target == "sampler":
        sampler = call.function(**given["sampler"])
        return {"sampler": sampler, "sample": sampler(**arguments)}
    if call.target == "head":
        return {"embedding": plain(call.function(**given["head"]).eval()(**arguments))}
    bank = MemoryBank(**given["bank"]) if "bank" in given else None
    if bank is not None:
        for fill in call.fills:
            bank.update(**fill)
    before = _state(bank)
    if call.target != "loss":
        assert bank is not None  # every other target has one
        bank.update(**arguments)
        for method in (bank.entries, bank.count, bank.slots):
            method(**given["queue"])
        return {"before": before, "after": _state(bank)}

    kind = HardAnchorSampler if "hard_fraction" in given.get("sampler", ()) else RandomAnchorSampler
    sampler = kind(**given["sampler"]) if "sampler" in given else None
    head = _head(given["head"], arguments["emb"], call.training) if "head" in given else None
    before_call = None if head is None else deepcopy(head).eval()
    parts: Arguments = {"bank": bank, "negative_sampler": mining, "anchor_sampler": sampler}
    parts["projection"] = head
    given["loss"] |= {name: p for name, p in parts.items() if given["loss"].get(name) is None}
    module = call.function(**given["loss"]).train(call.training)
    state, result = draw.get_state(), module(**arguments)
    if isinstance(result, Tensor):
        # Anchors are needed to judge the loss: repeat the call, which must give the same bits.
        again = {**call.given, "call": {**call.given["call"], "return_anchors": True}}
        alone = {"loss": plain(result), **_state(bank)}
        return {**perform(call._replace(given=again), group), "alone": alone}
    loss, sample = result
    return {
        "loss": plain(loss),
        "gradient": _gradients(loss, {"emb": arguments["emb"]}).get("emb"),
        "anchors": plain(module._call.anchors),
        "indices": plain(sample.indices),
        "labels": plain(sample.labels),
        "options": {name: getattr(module, name) for name in LOSS_OPTIONS},
        "head": before_call if module.projection is head else None,
        "before": before,
        "after": _state(bank),
        "draw": state,
    }


def _head(options: Arguments, features: Any, training: bool) -> ProjectionHead:
    dtype = features.dtype if isinstance(features, Tensor) else torch.float32
    head = ProjectionHead(**options).train(training)
    return head.to(dtype) if dtype in FLOATS else head


def placed(call: Call, backend: str | None, device: str) -> Call | None:
    """Move a call to a backend and a device; returns None if it does not fit there.

    The kernels do not support float64. Triton's interpreter truncates where a GPU rounds to
    bfloat16, and needs minutes for many anchors; such calls are left out. On another device only
    calls of `info_nce` with suitable arguments are made, and without random selection, because the
    generators of two devices draw different numbers.
    """
    if backend is not None:
        if "backend" in call.spoiled or call.target not in ("info_nce", "loss"):
            return None
        arguments = call.given["call"]
        vectors = arguments["anchors" if call.target == "info_nce" else "emb"]
        if isinstance(vectors, Tensor):
            contrast = {"contrast": arguments.get("contrast")}
            entries = [entry.dtype for _, entry in named_tensors(contrast)]
            entries += [call.given["bank"]["dtype"]] if "bank" in call.given else []
            truncated = vectors.dtype == torch.bfloat16 and set(entries) - {torch.bfloat16}
            is_large = vectors.numel() > MOST_NUMBERS
            if vectors.dtype == torch.float64 or (device == "cpu" and (truncated or is_large)):
                return None
        call.given["call" if call.target == "info_nce" else "loss"]["backend"] = backend
    if device == "cpu":
        return call
    strided = all(
        t.device.type == "cpu" and t.layout == torch.strided and not t.is_nested
        for _, t in named_tensors(call.given["call"])
    )
    if call.target != "info_nce" or call.spoiled or not strided:
        return None
    if call.given.get("mining", {}).get("strategy") != "hardest":
        call.given.pop("mining", None)

    def call_there(**given: Any) -> Any:
        # Differentiable operations, so that gradients reach the original tensors.
        return call.function(**{**_moved(given, device), "generator": None}).cpu()

    return call._replace(function=call_there)


def plain(tensor: Tensor) -> Tensor:
    """Return a contiguous tensor without graph, subclass or lazy negation."""
    return tensor.detach().as_subclass(Tensor).resolve_neg().contiguous()


def copy_of(state: Tensor) -> torch.Generator:
    """Make a generator with a state."""
    generator = torch.Generator()
    generator.set_state(state)
    return generator


def named_tensors(values: Arguments) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its name; those in sequences are named `contrast[1]`."""
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            yield from named_tensors({f"{name}[{index}]": one for index, one in enumerate(value)})
        elif isinstance(value, Tensor):
            yield name, value


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the address space, so that PyTorch's allocator refuses huge sizes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in Python code that takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _judge_error(error: Exception) -> tuple[str, str | None]:
    """Judge an exception: how the call ended, and a description of the defect, or None."""
    frames = traceback.extract_tb(error.__traceback__)
    message = str(error)
    ours = frames[-1].filename.startswith(PACKAGE) and NAMED.match(message) is not None
    if ours and type(error) in (TypeError, ValueError):
        return "refused", None
    if type(error) is RuntimeError and NO_MEMORY.search(message):
        return "no memory", None
    if message.startswith(RULES_OF_PYTORCH):
        return "refused by PyTorch", None
    where = next((f for f in reversed(frames) if f.filename.startswith(PACKAGE)), frames[-1])
    place = f"{Path(where.filename).name}:{where.name}"
    first = next(iter(message.splitlines()), "")
    return "raised", f"{type(error).__name__} from {place}: {first[:200]}"


def _has_unusual_tensor(call: Call) -> bool:
    """Return whether a call is refused for a tensor that is not dense or has no values."""
    return any(
        tensor.device.type == "meta" or tensor.layout != torch.strided or tensor.is_nested
        for _, tensor in named_tensors(call.given["call"])
    )


def _seen(tensor: Tensor) -> dict[str, Any]:
    """Record the bytes of a tensor, if they can be read, its version and `requires_grad`."""
    content = None
    if tensor.device.type != "meta" and tensor.layout == torch.strided and not tensor.is_nested:
        values = tensor.detach().as_subclass(Tensor).resolve_neg().resolve_conj()
        copied = torch.empty(values.numel(), dtype=values.dtype).copy_(values.flatten())
        content = copied.view(torch.uint8).numpy().tobytes()
    version = None if tensor.is_inference() else tensor._version
    return {"content": content, "version": version, "requires_grad": tensor.requires_grad}


def _gradients(loss: Any, leaves: Arguments) -> dict[str, Tensor]:
    """Differentiate the sum of a loss by tensors that require a gradient."""
    leaves = {name: tensor for name, tensor in leaves.items() if tensor.requires_grad}
    if not isinstance(loss, Tensor) or not loss.requires_grad or not leaves:
        return {}
    found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
    return {name: plain(g) for name, g in zip(leaves, found, strict=True) if g is not None}


def _state(bank: MemoryBank | None) -> dict[str, Tensor]:
    if bank is None:
        return {}
    buffers, saved = dict(bank.named_buffers()), bank.state_dict()
    assert saved.keys() == (buffers.keys() if bank.persistent else set())
    return {name: plain(value).clone() for name, value in buffers.items()}


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return type(value)(_moved(v, device) for v in value) if type(value) in (list, tuple) else value
