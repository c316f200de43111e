"""The state of a bank as a Module: buffers, validation of checkpoints, and checks of updates."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pixcontrast import _check as check
from pixcontrast._bank.ring import BUFFERS, QUEUES, WHOLE, Rings, Shard, slots_below
from pixcontrast._tensors import at_least_float32

UNIT_TOLERANCE = 2**-7
"""Tolerance of unit length. Rounding to bfloat16 changes a length by at most 2^-9."""


class BankBuffers(nn.Module):
    """The buffers of a bank: saved, loaded and moved, but not listed by its parent modules.

    DistributedDataParallel broadcasts the buffers of the wrapped module from rank 0 in every step,
    and a moving average over `buffers()` copies them. With a bank, that would cost its whole size
    each time and overwrite one rank's shard with another's. Both list the buffers of the outer
    module, which does not include these. `.to()`, the bank itself and, if they are persistent,
    `state_dict` do include them.
    """

    pixels: Tensor
    regions: Tensor
    pixel_count: Tensor
    region_count: Tensor
    pixel_next: Tensor
    region_next: Tensor

    def __init__(self, persistent: bool, shard: Shard) -> None:
        super().__init__()
        self.persistent = persistent
        self._shard = shard
        self._own: tuple[str, ...] = ()

    def register_own_buffer(self, name: str, tensor: Tensor) -> None:
        setattr(self, name, tensor)
        self._own = (*self._own, name)
        if not self.persistent:
            self._non_persistent_buffers_set.add(name)

    def register_queue(self, queue: str, vectors: Tensor) -> None:
        """Register vectors (C, slots, D) and counters of a queue."""
        name, *counters = BUFFERS[queue]
        self.register_own_buffer(name, vectors)
        for counter in counters:
            self.register_own_buffer(counter, torch.zeros(len(vectors), dtype=torch.int64))

    def _rings(self, queue: str) -> Rings:
        check.check_choice("queue", queue, QUEUES)
        return Rings(*(getattr(self, name) for name in BUFFERS[queue]))

    @contextmanager
    def _registered(self) -> Iterator[None]:
        """Register the buffers as ordinary buffers inside the context, for code of PyTorch."""
        for name in self._own:
            self._buffers[name] = self.__dict__.pop(name)
        try:
            yield
        finally:
            for name in self._own:
                self.__dict__[name] = self._buffers.pop(name)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        with self._registered():
            return iter(list(super().named_buffers(*args, **kwargs)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BankBuffers:
        without_values = [name for name in self._own if getattr(self, name).is_meta]
        with self._registered():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._clear(name for name in without_values if not getattr(self, name).is_meta)
        return self

    def reset_parameters(self) -> None:
        """Empty the bank. Deferred initialization calls this after it has allocated the buffers."""
        self._clear(self._own)

    def _clear(self, names: Iterable[str]) -> None:
        for name in names:
            buffer: Tensor = getattr(self, name)
            if name == "shard":
                buffer.copy_(torch.tensor(self._shard, device=buffer.device))
            else:
                buffer.zero_()

    def get_buffer(self, target: str) -> Tensor:
        with self._registered():
            return super().get_buffer(target)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        with self._registered():
            super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], *args: Any) -> None:
        """Load a state if all of the bank's entries are valid; otherwise load nothing."""
        prefix, _, _, missing_keys, _, error_msgs = args
        buffers = dict(self.named_buffers()) if self.persistent else {}
        faults = faults_of_state(state_dict, prefix, buffers, self._shard)
        if not faults:
            with self._registered():
                super()._load_from_state_dict(state_dict, *args)
            for name, buffer in buffers.items():
                # With assign=True PyTorch keeps the dtype and the strides of the state.
                loaded: Tensor = getattr(self, name)
                setattr(self, name, loaded.to(buffer.dtype).contiguous())
            return
        strict, depth = _running_load()
        if strict:
            error_msgs.extend([*faults, "(strict=False leaves the bank as it is)"])
        else:
            missing_keys.extend(prefix + name for name in buffers)
            message = "MemoryBank: not loaded, the bank stays as it is: " + "; ".join(faults)
            warnings.warn(message, stacklevel=depth)


def _running_load() -> tuple[bool, int]:
    """Return the `strict` of the running `load_state_dict`, which PyTorch does not pass on.

    The second number is the `stacklevel` of a warning to its caller, given by the calling function.
    """
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None:
        depth += 1
        if frame.f_code is nn.Module.load_state_dict.__code__:
            return bool(frame.f_locals["strict"]), depth
        frame = frame.f_back
    return True, 1


def faults_of_state(
    state: Mapping[str, Any], prefix: str, buffers: Mapping[str, Tensor], shard: Shard
) -> list[str]:
    """Return what is wrong with the bank's part of a state, one message for each entry.

    A state without any entry of the bank has no fault: the `strict` option decides about it.
    """
    saved = {name: state[prefix + name] for name in (*buffers, "shard") if prefix + name in state}
    if not saved.keys() & buffers.keys():
        return []
    faults = (  # each check assumes that those before it have passed
        _faults_of_shard(saved, shard)
        or [fault for item in buffers.items() for fault in _faults(saved, *item)]
        or [fault for names in BUFFERS.values() for fault in _faults_of_rings(saved, names, shard)]
    )
    return [prefix + fault for fault in faults]


def _faults_of_shard(state: Mapping[str, Any], expected: Shard) -> list[str]:
    """Check that each rank of a sharded bank loads its own shard, of the same number of ranks.

    Compare with `expected` and not with the bank's own tensor: a distributed checkpoint is loaded
    in place.
    """
    saved = state.get("shard", torch.tensor(WHOLE))
    if not isinstance(saved, Tensor) or saved.is_meta or saved.tolist() == list(expected):
        return []
    got: object = saved.tolist()
    if saved.shape == (len(Shard._fields),):
        got = "that of rank {} of {}".format(*saved.tolist())
    return [
        f"shard: expected that of rank {expected.rank} of {expected.size}; got {got} (each rank of "
        f"a sharded bank loads the shard that it saved, and the number of ranks must be the same)"
    ]


def _faults(state: Mapping[str, Any], name: str, buffer: Tensor) -> list[str]:
    """Return what is wrong with one entry, apart from its values."""
    value, is_floating, fix = state.get(name), buffer.is_floating_point(), ""
    if name not in state:
        got, fix = "nothing: it is missing", " (load all entries of a bank, or none)"
    elif not isinstance(value, Tensor):
        got = f"a {type(value).__name__}"
    elif value.layout != torch.strided:
        got = f"one of layout {value.layout}"
    elif value.is_meta and not buffer.is_meta:
        got = "one without values, on the meta device"
    elif value.shape != buffer.shape:
        got = f"the shape {list(value.shape)}"
        fix = " (build the bank with the options of the saved one)"
    elif not (value.dtype in check.FLOATING if is_floating else value.dtype == buffer.dtype):
        got = check.short_dtype(value.dtype)
    else:
        return []
    kind = "floating" if is_floating else "int64"
    shape = list(buffer.shape)
    return [f"{name}: expected a dense {kind} tensor of shape {shape}; got {got}{fix}"]


def _faults_of_rings(
    state: Mapping[str, Any], names: tuple[str, str, str], shard: Shard
) -> list[str]:
    """Return the first fault of the values of one queue; `names` are those of its entries."""
    vectors, count, next_position = rings = [state[name] for name in names]
    if any(tensor.is_meta for tensor in rings):
        return []
    slots = vectors.shape[1]
    length = max(slots * shard.size, 1)
    # A ring that is not full is written in the order of its slots.
    follows = (count == slots) | (count == slots_below(next_position, shard))
    follows &= (next_position >= 0) & (next_position < length)
    norms = torch.linalg.vector_norm(vectors, dim=2, dtype=at_least_float32(vectors))
    written = torch.arange(slots, device=count.device) < count[:, None]
    is_unit = (norms - 1).abs() <= UNIT_TOLERANCE  # False for NaN
    # Not by `norms`, because squares of small numbers are 0.
    is_zero = torch.linalg.vector_norm(vectors, torch.inf, dim=2) == 0
    got = f"counts {count.tolist()} and next slots {next_position.tolist()}"
    for name, ok, expected in (
        (names[1], (count >= 0) & (count <= slots), f"counts from 0 to {slots}"),
        (names[2], follows, f"the slot after the last one written, below {length}"),
        (names[0], is_unit | (~written & is_zero), "unit length if written, else zeros"),
    ):
        if not bool(ok.all()):
            return [
                f"{name}: expected {expected}; got {'other vectors' if name == names[0] else got} "
                f"(no bank has saved this; if it is a moving average over state_dict(), build the "
                f"bank with persistent=False)"
            ]
    return []


class UpdateGuard:
    """Checks made before a bank is updated. Code compiled by torch.compile skips them."""

    def __init__(self) -> None:
        self._updater: weakref.ref[object] | None = None
        self._warned = False

    def check_outside_backward(self) -> None:
        """Raise during a backward pass."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "MemoryBank: expected an update outside of a backward pass; got one during a "
                "backward pass (a checkpointed region runs its forward again during backward: call "
                "the loss outside of it)"
            )

    def claim(self, updater: object) -> None:
        """Record which loss updates the bank, and warn once if a second loss does."""
        if torch.compiler.is_compiling():
            return
        current = None if self._updater is None else self._updater()
        if current is None:
            self._updater = weakref.ref(updater)
        elif current is not updater and not self._warned:
            self._warned = True
            warnings.warn(
                "two losses update the same MemoryBank, so that each batch is stored twice; build "
                "one of them with update_bank=False",
                stacklevel=6,
            )

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be copied, and the updater belongs to this process.
        return {**self.__dict__, "_updater": None}
