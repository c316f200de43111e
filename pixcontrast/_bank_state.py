"""Whether a state is one that a bank may take: looked at before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pixcontrast._ring import WHOLE, Shard, slots_below

QUEUES = ("pixel", "region")
UNIT_TOLERANCE = 2**-7
"""Of a length. Rounded to bfloat16, a unit vector is off by at most 2^-9, and float16 by less."""


def faults_of_state(
    state: Mapping[str, Any], prefix: str, buffers: Mapping[str, Tensor], shard: Shard
) -> list[str]:
    """What is wrong with the bank's part of a state, each in a message that names the entry.

    A state that holds no entry of the bank at all has no fault: whether that may be is up to
    `strict`.
    """
    if not any(prefix + name in state for name in buffers):
        return []
    faults = _faults_of_shard(state, prefix, shard)
    if faults:
        return faults
    faults = [
        fault for name, buffer in buffers.items() if (fault := _fault(state, prefix + name, buffer))
    ]
    if not faults:
        for queue in QUEUES:
            names = (f"{queue}s", f"{queue}_count", f"{queue}_next")
            vectors, count, next_slot = (state[prefix + name] for name in names)
            if not (vectors.is_meta or count.is_meta or next_slot.is_meta):
                faults += _faults_of_ring(prefix + queue, vectors, count, next_slot, shard)
    return faults


def _faults_of_shard(state: Mapping[str, Any], prefix: str, expected: Shard) -> list[str]:
    """Each rank of a sharded bank takes its own shard, of as many ranks as there were.

    The bank's own tensor is not asked: a distributed checkpoint is loaded in place.
    """
    saved = state.get(f"{prefix}shard", torch.tensor(WHOLE))
    if not isinstance(saved, Tensor) or saved.is_meta or saved.tolist() == list(expected):
        return []
    got: object = saved.tolist()
    if saved.shape == (len(Shard._fields),):
        got = "that of rank {} of {}".format(*saved.tolist())
    return [
        f"{prefix}shard: expected that of rank {expected.rank} of {expected.size}; got {got} (each "
        f"rank of a sharded bank saves and loads its own shard, and as many ranks as saved them "
        f"load them)"
    ]


def _fault(state: Mapping[str, Any], key: str, buffer: Tensor) -> str | None:
    if key not in state:
        return f"{key}: expected an entry of the bank's state; it is missing"
    value = state[key]
    if not isinstance(value, Tensor):
        return f"{key}: expected a tensor; got a {type(value).__name__}"
    if value.layout != torch.strided:
        return f"{key}: expected a dense tensor; got one of layout {value.layout}"
    if value.is_meta and not buffer.is_meta:
        return f"{key}: expected values; got a tensor on the meta device, which holds none"
    if value.shape != buffer.shape:
        return (
            f"{key}: the shape in the checkpoint is {list(value.shape)}, and that of the bank "
            f"{list(buffer.shape)} (build the bank with the options of the one that was saved)"
        )
    kind = "floating" if buffer.is_floating_point() else "int64"
    fits = value.is_floating_point() if kind == "floating" else value.dtype == buffer.dtype
    if not fits:
        return f"{key}: expected a {kind} tensor; got {str(value.dtype).removeprefix('torch.')}"
    return None


def _faults_of_ring(
    key: str, vectors: Tensor, count: Tensor, next_slot: Tensor, shard: Shard
) -> list[str]:
    slots = vectors.shape[1]
    places = max(slots * shard.size, 1)
    if not bool(((count >= 0) & (count <= slots)).all()):
        return [f"{key}_count: expected counts from 0 to {slots}; got {count.tolist()}"]
    # A ring that is not yet full is written in the order of its slots.
    follows = (count == slots) | (count == slots_below(next_slot, shard))
    follows &= next_slot < places
    if not bool((follows & (next_slot >= 0)).all()):
        return [
            f"{key}_next: expected the slot after the last one written, below {places}; "
            f"got {next_slot.tolist()} beside counts of {count.tolist()}"
        ]
    length = torch.linalg.vector_norm(vectors.to(torch.float64), dim=2)
    written = torch.arange(slots, device=count.device) < count[:, None]
    is_unit = (length - 1).abs() <= UNIT_TOLERANCE  # False for NaN
    if not bool((is_unit | (~written & (length == 0))).all()):
        return [
            f"{key}s: expected vectors of unit length in written slots, and zeros in the others; "
            f"got something else"
        ]
    return []
