"""What one rank measures of its loss and bank: times, flops, messages and memory."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks._measure.device import measured_peak
from benchmarks._measure.timers import measure as measure_times
from benchmarks._ranks import costs
from benchmarks._ranks.costs import Message, Step, entries
from pixcontrast import MemoryBank, PixelContrastLoss, RandomAnchorSampler
from pixcontrast._info_nce import operators

Row = dict[str, Any]

MEGABYTE = 1 << 20
SIDE = 16
"""Height and width of the embedding map."""
BASE = Step(ranks=1, images=2, anchors=128, dim=64, num_classes=8, pixels_per_image=4,
            pixel_slots=2048, region_slots=0, gather=False)  # fmt: skip
GROWTH = (1, 2, 4)
"""Sizes of the bank whose times are compared, relative to `BASE`, in all ranks together."""
WEIGHED = (16, 32, 64)
"""Sizes whose memory is measured: there tiles of positives no longer grow with a class."""
COLLECTIVES = {
    "all_gather_into_tensor": "all-gather",
    "all_gather_single": "all-gather",  # its name in newer versions of PyTorch
    "all_to_all_single": "all-to-all",
    "all_reduce": "sum",
}
UNUSED = (
    *("all_gather", "all_gather_object", "all_to_all", "barrier", "broadcast", "gather"),
    *("broadcast_object_list", "irecv", "isend", "recv", "reduce", "reduce_scatter"),
    *("reduce_scatter_tensor", "scatter", "send"),
)
"""Collectives that the library does not use; they are counted by name, without a size."""
MERGE: dict[str, Callable[[Iterable[Any]], Any]] = {
    "held": sum,
    "tensors_mb": max,
    "resident_mb": max,
    "extra_mb": max,
    "counted": lambda counted: list(chain(*counted)),
    "as_computed": all,
}
"""How the figures of all ranks make one."""
OPERATORS = {one._name: one for one in vars(operators).values() if hasattr(one, "_init_fn")}


def step_of(ranks: int, growth: int, *, sharded: bool, gather: bool = False) -> Step:
    """Return `BASE` on several ranks, with `growth` times its slots in all ranks together."""
    whole = growth * BASE.pixel_slots
    own = whole // ranks if sharded else whole
    return replace(BASE, ranks=ranks, pixel_slots=own, sharded=sharded, gather=gather)


def bank_of(
    step: Step, dtype: torch.dtype = torch.float32, process_group: Any = None
) -> MemoryBank:
    """Make the empty bank of a step; of a sharded one, the shard of this rank."""
    return MemoryBank(
        step.num_classes,
        step.dim,
        pixel_slots=step.pixel_slots,
        region_slots=step.region_slots,
        pixels_per_image=step.pixels_per_image,
        dtype=dtype,
        sharded=step.sharded,
        process_group=process_group,
    )


def full_bank(step: Step) -> MemoryBank:
    """Make a bank that is full of random unit vectors."""
    bank = bank_of(step)
    for of_class in bank.pixels:
        torch.nn.functional.normalize(torch.randn(of_class.shape), dim=1, out=of_class)
    bank.pixel_count.fill_(step.pixel_slots)
    return bank


class Case:
    """Forward and backward of a loss with a full bank, which does not change unless asked."""

    def __init__(self, step: Step, sources: tuple[str, ...], update_bank: bool = False) -> None:
        self.loss = PixelContrastLoss(
            anchor_sampler=RandomAnchorSampler(max_anchors=step.anchors),
            bank=full_bank(step),
            contrast_with=sources,
            gather=step.gather,
            update_bank=update_bank,
        )
        self.emb = torch.randn(step.images, step.dim, SIDE, SIDE, requires_grad=True)
        self.labels = torch.randint(0, step.num_classes, (step.images, SIDE, SIDE))

    def __call__(self) -> Tensor:
        """Return the gradient of the embeddings."""
        (gradient,) = torch.autograd.grad(self.loss(self.emb, self.labels), self.emb)
        return gradient

    def together(self) -> None:
        """Run between two barriers, so that all ranks measure the same time."""
        distributed.barrier()
        self()
        distributed.barrier()


def measure(group: Any, rank: int, ranks: int, repeats: int) -> dict[str, list[Row]]:
    """Measure everything on this rank: a large bank, losses, and each kind of gathering.

    All ranks call it together.
    """
    sharded = ranks > 1
    kinds = [(False, False), (False, True), (True, True)] if sharded else [(False, False)]
    steps = [step_of(ranks, 1, sharded=shards, gather=gather) for shards, gather in kinds]
    large = replace(BASE, pixel_slots=8 * BASE.pixel_slots, ranks=ranks, sharded=sharded)
    rows: dict[str, list[Row]] = {"banks": [{**_which(large), **weigh_bank(large)}]}
    rows["losses"] = [
        {**_which(step), "slots": costs.slots(step), "extra_mb": weigh_loss(step)}
        for step in (step_of(ranks, growth, sharded=sharded) for growth in WEIGHED)
    ]
    rows["flops"], rows["messages"] = [], []
    for step in steps:
        flops = {"bank": costs.bank_flops(step), "batch": costs.batch_flops(step)}
        rows["flops"].append({**_which(step), **flops, "counted": [count_flops(step)]})
        computed = [[message.collective, message.parcel] for message in costs.messages(step)]
        larger = replace(step, pixel_slots=GROWTH[-1] * step.pixel_slots)
        alike = all(count_messages(size) == computed for size in (step, larger))
        rows["messages"].append({**_which(step), "computed": computed, "as_computed": alike})
    return {**rows, "times": time_losses(ranks, repeats)}


def merged(found: list[dict[str, list[Row]]]) -> dict[str, list[Row]]:
    """Combine the rows of all ranks; what `MERGE` does not name is that of the first rank."""
    rows: dict[str, list[Row]] = {name: [] for name in found[0]}
    for name in rows:
        for of_ranks in zip(*(one[name] for one in found), strict=True):
            row = dict(of_ranks[0])
            for key in row.keys() & MERGE.keys():
                row[key] = MERGE[key](one[key] for one in of_ranks)
            rows[name].append(row)
    return rows


def _which(step: Step) -> Row:
    return {"ranks": step.ranks, "sharded": step.sharded, "gather": step.gather}


def time_losses(ranks: int, repeats: int) -> list[Row]:
    """Measure times of the loss in turn; returns their ratios."""
    kinds = (False, True) if ranks > 1 else (False,)
    steps = [step_of(ranks, growth, sharded=sharded) for growth in GROWTH for sharded in kinds]
    runs: dict[str, Callable[[], object]] = {
        str(number): Case(step, ("pixels",)).together for number, step in enumerate(steps)
    }
    measured = list(measure_times(runs, repeats, strict=True).values())
    kinds_of = [(step.sharded, entries(step)) for step in steps]
    medians = dict(zip(kinds_of, (one["seconds"] for one in measured), strict=True))
    smallest = entries(steps[0])
    return [
        {
            "ranks": ranks,
            "sharded": sharded,
            "entries": size,
            "to_whole": one["seconds"] / medians[False, size],
            "to_smallest": one["seconds"] / medians[sharded, smallest],
            "spread": one["spread"],
        }
        for (sharded, size), one in zip(kinds_of, measured, strict=True)
    ]


class ProductFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the flops of the products that are made, inside of our operators too."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "pixcontrast":
            # What an operator does is hidden from a mode, unless it is called as a function.
            with self:
                return OPERATORS[func._opname]._init_fn(*args, **kwargs)
        made = func(*args, **kwargs)
        # The table has no entry for the CPU's attention, which has the arguments of the card's.
        counter = flop_registry.get(func.overloadpacket)
        if func._opname == "_scaled_dot_product_flash_attention_for_cpu":
            counter = flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]
        if counter is not None:
            self.flops += counter(*args, out_val=made)
        return made


def count_flops(step: Step) -> int:
    """Count the flops of the products in one step."""
    case = Case(step, ("batch", "pixels"))
    with ProductFlops() as products:  # type: ignore[no-untyped-call]
        case()
    return int(products.flops)


def count_messages(step: Step) -> list[list[Any]]:
    """List kind and size of the collectives of one step."""
    case = Case(step, ("batch", "pixels"), update_bank=True)
    with counted_messages(step.ranks) as found:
        case()
    return [[message.collective, message.parcel] for message in found]


@contextmanager
def counted_messages(ranks: int) -> Iterator[list[Message]]:
    """Record the collectives that are called inside the context, in order."""
    found: list[Message] = []
    is_outer = True

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal is_outer
            if not is_outer:  # a collective implemented by another one
                return original(*arguments, **options)
            kind, parcel = COLLECTIVES.get(name, name), 0
            if name in COLLECTIVES:
                sent: Tensor = arguments[0 if kind == "sum" else 1]
                parcel = sent.nbytes // (ranks if kind == "all-to-all" else 1)
            found.append(Message("", kind, parcel))
            is_outer = False
            try:
                return original(*arguments, **options)
            finally:
                is_outer = True

        return call

    with ExitStack() as stack:
        for name in (*COLLECTIVES, *UNUSED):
            if hasattr(distributed, name):
                replaced = counted(name, getattr(distributed, name))
                stack.enter_context(patch.object(distributed, name, replaced))
        yield found


def weigh_bank(step: Step) -> Row:
    """Measure a full bank: its entries, and its size in tensors and in resident memory."""
    full_bank(replace(step, pixel_slots=16))  # libraries allocate on their first call
    kept: list[MemoryBank] = []
    resident = measured_peak(lambda: kept.append(full_bank(step)))
    (bank,) = kept
    sizes = [buffer.untyped_storage().nbytes() for buffer in bank.buffers()]
    return {
        "slots": costs.slots(step),
        "held": int(bank.pixel_count.sum()),
        "computed_mb": costs.bank_bytes(step) / MEGABYTE,
        "tensors_mb": sum(sizes) / MEGABYTE,
        "resident_mb": resident,
    }


def weigh_loss(step: Step) -> float:
    """Measure the MB that a step needs beyond its bank and inputs."""
    Case(replace(step, pixel_slots=16), ("pixels",))()
    case = Case(step, ("pixels",))
    return statistics.median(measured_peak(case) for _ in range(3))
