"""The tables of docs/scale.md, computed by `_ranks.costs` or measured by `benchmarks.ranks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks._ranks import costs
from benchmarks._ranks.cases import CASES, H200, seconds_at_least
from benchmarks._tables.text import TextTable

Record = dict[str, Any]

SENT = ("Cityscapes, sharded", "COCO-Stuff, every image", "10⁹ entries", "10⁹ entries, D = 64")
"""The cases whose messages are listed."""
BOUNDS = ("products", "exponentials", "reading", "messages")
COMPUTED: dict[str, dict[str, Callable[[costs.Step], str]]] = {
    "sizes": {
        "W": lambda step: str(step.ranks),
        "B": lambda step: str(step.images),
        "K": lambda step: f"{step.anchors:,}",
        "D": lambda step: str(step.dim),
        "slots a rank": lambda step: f"{costs.slots(step):,}",
        "entries N": lambda step: f"{costs.entries(step):,}",
        "bank a rank": lambda step: scaled(costs.bank_bytes(step), "B"),
        "its labels": lambda step: scaled(costs.label_bytes(step), "B"),
    },
    "work": {
        "against the bank": lambda step: scaled(costs.bank_flops(step), "flop"),
        "against the batch": lambda step: scaled(costs.batch_flops(step), "flop"),
        "exponentials": lambda step: scaled(costs.exponentials(step), ""),
        "read of the bank": lambda step: scaled(costs.read_bytes(step), "B"),
        "new entries sent": lambda step: scaled(costs.new_entries_bytes(step), "B"),
        "received in all": lambda step: scaled(costs.received_bytes(step), "B"),
    },
}
"""Headings of a table with a row for each case, and the functions that format their cells."""
W = {"W": "{ranks}"}
BANK = {**W, "bank": "{which}"}
MEASURED: dict[str, tuple[str, dict[str, str]]] = {
    "shards": (
        "times",
        {
            **W,
            "entries": "{entries:,}",
            "sharded ÷ whole": "{to_whole:.2f}",
            "spread, sharded": "{spread:.2f}",
            "spread, whole": "{spread_of_whole:.2f}",
        },
    ),
    "flops": (
        "flops",
        {
            **BANK,
            "gather": "{gathers}",
            "flops computed": "{sum:,}",
            "counted ÷ computed": "{ratios}",
        },
    ),
    "counted": (
        "messages",
        {
            **BANK,
            "gather": "{gathers}",
            "all-gather, bytes": "{all-gather}",
            "all-to-all, bytes": "{all-to-all}",
            "counted so": "{so}",
        },
    ),
    "banks": (
        "banks",
        {
            **BANK,
            "slots a rank": "{slots:,}",
            "entries in all": "{held:,}",
            "computed, MB a rank": "{computed_mb:.2f}",
            "tensors": "{tensors_mb:.2f}",
            "resident": "{resident_mb:.2f}",
        },
    ),
    "losses": (
        "losses",
        {**BANK, "slots a rank": "{slots:,}", "extra MB a rank": "{extra_mb:.1f}"},
    ),
}
"""The rows of the record that a table has, its headings, and the formats of their cells."""


def scale_table(name: str, record: Record) -> TextTable:
    """Make a table by name from the record of `benchmarks.ranks`."""
    if name in COMPUTED:
        cells = [
            [case, *(cell(step) for cell in COMPUTED[name].values())]
            for case, step in CASES.items()
        ]
        return TextTable(("", *COMPUTED[name]), cells)
    if name in MEASURED:
        key, columns = MEASURED[name]
        rows = [_described(row) for row in record[key]]
        if name == "shards":
            whole = {
                (row["ranks"], row["entries"]): row["spread"] for row in rows if not row["sharded"]
            }
            rows = [
                row | {"spread_of_whole": whole[row["ranks"], row["entries"]]}
                for row in rows
                if row["sharded"]
            ]
        return TextTable(
            tuple(columns), [[cell.format(**row) for cell in columns.values()] for row in rows]
        )
    return {"bounds": _bounds, "sent": _sent, "machine": _machine, "linear": _linear}[name](record)


def _described(row: Record) -> Record:
    """Add what the cells need to a measured row."""
    described = row | {
        "which": "sharded" if row["sharded"] else "whole",
        "gathers": "yes" if row.get("gather") else "no",
    }
    if "counted" in row:
        described["sum"] = row["bank"] + row["batch"]
        ratios = sorted(count / described["sum"] for count in row["counted"])
        ends = dict.fromkeys((ratios[0], ratios[-1]))
        described["ratios"] = "–".join(f"{ratio:.2f}" for ratio in ends)
    if "as_computed" in row:
        for kind in ("all-gather", "all-to-all"):
            sizes = [f"{size:,}" for name, size in row["computed"] if name == kind]
            described[kind] = "; ".join(sizes) or "–"
        described["so"] = "yes" if row["as_computed"] else "no"
    return described


def _bounds(record: Record) -> TextTable:
    seconds = {name: seconds_at_least(step, H200) for name, step in CASES.items()}
    rows = [[name, *(f"{1000 * of[part]:,.2f}" for part in BOUNDS)] for name, of in seconds.items()]
    return TextTable(("ms, at the least", *BOUNDS), rows)


def _sent(record: Record) -> TextTable:
    lists = [costs.messages(CASES[name]) for name in SENT]
    rows = [
        [of_all[0].what, of_all[0].collective, *(scaled(one.parcel, "B") for one in of_all)]
        for of_all in zip(*lists, strict=True)
    ]
    return TextTable(("to each other rank", "collective", *SENT), rows)


def _machine(record: Record) -> TextTable:
    found = record["environment"]
    load = ", ".join(f"{load:.1f}" for load in found["load_average_at_start"])
    cells = [found["date"][:10], found["torch"], str(found["processors"]), load]
    return TextTable(("date", "torch", "processors", "load at the start"), [cells])


def _linear(record: Record) -> TextTable:
    """Show how times grow with the number of entries."""
    smallest = record["times"][0]["entries"]
    headings = {f"{row['entries'] / smallest:.0f} × the entries": None for row in record["times"]}
    groups: dict[tuple[str, str], list[str]] = {}
    for row in map(_described, record["times"]):
        group = groups.setdefault((str(row["ranks"]), row["which"]), [])
        group.append(f"{row['to_smallest']:.2f}")
    return TextTable(("W", "bank", *headings), [[*key, *cells] for key, cells in groups.items()])


def scaled(value: float, unit: str) -> str:
    """Format a number with three digits and an SI prefix: 97.3 MB."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while value >= 999.5:
        value /= 1000
        prefix = next(prefixes)
    digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {prefix}{unit}".rstrip()
