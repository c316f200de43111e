"""The tables of docs/scale.md: computed by `costs`, or measured by `ranks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks._ranks.cases import CASES, H200, seconds_at_least
from benchmarks._ranks.costs import (
    bank_bytes,
    bank_flops,
    batch_flops,
    entries,
    exponentials,
    label_bytes,
    messages,
    new_entries_bytes,
    read_bytes,
    received_bytes,
    slots,
)
from benchmarks._tables.text import markdown_table

Record = dict[str, Any]

SENT = ("Cityscapes, sharded", "COCO-Stuff, every image", "10⁹ entries", "10⁹ entries, D = 64")
"""The cases whose messages are shown one by one."""


def scale_table(name: str, record: Record) -> str:
    """The table of that name; `record` is what `benchmarks.ranks` wrote."""
    return TABLES[name](record)


def _sizes(record: Record) -> str:
    rows = [
        [
            name,
            str(step.ranks),
            str(step.images),
            f"{step.anchors:,}",
            str(step.dim),
            f"{slots(step):,}",
            f"{entries(step):,}",
            scaled(bank_bytes(step), "B"),
            scaled(label_bytes(step), "B"),
        ]
        for name, step in CASES.items()
    ]
    headings = ("", "W", "B", "K", "D", "slots a rank", "entries N", "bank a rank", "its labels")
    return markdown_table(headings, rows)


def _work(record: Record) -> str:
    rows = [
        [
            name,
            scaled(bank_flops(step), "flop"),
            scaled(batch_flops(step), "flop"),
            scaled(exponentials(step), ""),
            scaled(read_bytes(step), "B"),
            scaled(new_entries_bytes(step), "B"),
            scaled(received_bytes(step), "B"),
        ]
        for name, step in CASES.items()
    ]
    headings = (
        "",
        "against the bank",
        "against the batch",
        "exponentials",
        "read of the bank",
        "new entries sent",
        "received in all",
    )
    return markdown_table(headings, rows)


def _bounds(record: Record) -> str:
    rows = [
        [name, *(f"{1000 * one:,.2f}" for one in seconds_at_least(step, H200).values())]
        for name, step in CASES.items()
    ]
    return markdown_table(
        ("ms, at the least", "products", "exponentials", "reading", "messages"), rows
    )


def _sent(record: Record) -> str:
    lists = [messages(CASES[name]) for name in SENT]
    rows = [
        [of_all[0].what, of_all[0].collective, *(scaled(one.parcel, "B") for one in of_all)]
        for of_all in zip(*lists, strict=True)
    ]
    return markdown_table(("to each other rank", "collective", *SENT), rows)


def _machine(record: Record) -> str:
    of = record["environment"]
    load = ", ".join(f"{one:.1f}" for one in of["load_average_at_start"])
    row = [of["date"][:10], of["torch"], str(of["processors"]), load]
    return markdown_table(("date", "torch", "processors", "load at the start"), [row])


def _shards(record: Record) -> str:
    """Times of the loss, whole and in shards, side by side."""
    found = {(row["ranks"], row["entries"], row["sharded"]): row for row in record["times"]}
    rows = []
    for (ranks, number, sharded), row in found.items():
        if sharded:
            whole = found[ranks, number, False]
            cells = (row["to_whole"], row["spread"], whole["spread"])
            rows.append([str(ranks), f"{number:,}", *(f"{cell:.2f}" for cell in cells)])
    return markdown_table(
        ("W", "entries", "sharded ÷ whole", "spread, sharded", "spread, whole"), rows
    )


def _linear(record: Record) -> str:
    """How times grow with the entries."""
    found: dict[tuple[int, bool], list[Record]] = {}
    for row in record["times"]:
        found.setdefault((row["ranks"], row["sharded"]), []).append(row)
    rows = [
        [str(ranks), _kind(sharded), *(f"{row['to_smallest']:.2f}" for row in of_one)]
        for (ranks, sharded), of_one in found.items()
    ]
    first = next(iter(found.values()))
    growth = [f"{row['entries'] / first[0]['entries']:.0f} × the entries" for row in first]
    return markdown_table(("W", "bank", *growth), rows)


def _flops(record: Record) -> str:
    rows = []
    for row in record["flops"]:
        computed = row["bank"] + row["batch"]
        of_ranks = sorted({counted / computed for counted in row["counted"]})
        counted = "–".join(f"{one:.2f}" for one in dict.fromkeys((of_ranks[0], of_ranks[-1])))
        rows.append([str(row["ranks"]), *_which(row), f"{computed:,}", counted])
    return markdown_table(("W", "bank", "gather", "flops computed", "counted ÷ computed"), rows)


def _counted(record: Record) -> str:
    rows = []
    for row in record["messages"]:
        sizes: dict[str, list[str]] = {"all-gather": [], "all-to-all": []}
        for kind, size in row["computed"]:
            sizes[kind].append(f"{size:,}")
        cells = ["; ".join(of_kind) or "–" for of_kind in sizes.values()]
        seen = "yes" if row["as_computed"] else "no"
        rows.append([str(row["ranks"]), *_which(row), *cells, seen])
    headings = ("W", "bank", "gather", "all-gather, bytes", "all-to-all, bytes", "counted so")
    return markdown_table(headings, rows)


def _banks(record: Record) -> str:
    rows = [
        [
            str(row["ranks"]),
            _kind(row["sharded"]),
            f"{row['slots']:,}",
            f"{row['held']:,}",
            *(f"{row[name]:.2f}" for name in ("computed_mb", "tensors_mb", "resident_mb")),
        ]
        for row in record["banks"]
    ]
    headings = (
        "W",
        "bank",
        "slots a rank",
        "entries in all",
        "computed, MB a rank",
        "tensors",
        "resident",
    )
    return markdown_table(headings, rows)


def _losses(record: Record) -> str:
    rows = [
        [str(row["ranks"]), _kind(row["sharded"]), f"{row['slots']:,}", f"{row['extra_mb']:.1f}"]
        for row in record["losses"]
    ]
    return markdown_table(("W", "bank", "slots a rank", "extra MB a rank"), rows)


TABLES: dict[str, Callable[[Record], str]] = {
    "sizes": _sizes,
    "work": _work,
    "bounds": _bounds,
    "sent": _sent,
    "machine": _machine,
    "shards": _shards,
    "linear": _linear,
    "flops": _flops,
    "counted": _counted,
    "banks": _banks,
    "losses": _losses,
}


def scaled(value: float, unit: str) -> str:
    """Three digits and a prefix of thousands: 97.3 MB."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while value >= 999.5:
        value /= 1000
        prefix = next(prefixes)
    digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {prefix}{unit}".rstrip()


def _kind(sharded: bool) -> str:
    return "sharded" if sharded else "whole"


def _which(row: Record) -> list[str]:
    return [_kind(row["sharded"]), "yes" if row["gather"] else "no"]
