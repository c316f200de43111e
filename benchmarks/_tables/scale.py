"""The tables of docs/scale.md, computed by `_ranks.costs` or measured by `benchmarks.ranks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks._ranks.cases import CASES, H200, seconds_at_least
from benchmarks._ranks.costs import (
    Step,
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
from benchmarks._tables.text import TextTable

Record = dict[str, Any]
Columns = dict[str, Callable[[Any], str]]
"""Headings, each with the function that formats a cell of the column."""

SENT = ("Cityscapes, sharded", "COCO-Stuff, every image", "10⁹ entries", "10⁹ entries, D = 64")
"""The cases whose messages are listed."""

SIZES: Columns = {
    "W": lambda step: str(step.ranks),
    "B": lambda step: str(step.images),
    "K": lambda step: f"{step.anchors:,}",
    "D": lambda step: str(step.dim),
    "slots a rank": lambda step: f"{slots(step):,}",
    "entries N": lambda step: f"{entries(step):,}",
    "bank a rank": lambda step: scaled(bank_bytes(step), "B"),
    "its labels": lambda step: scaled(label_bytes(step), "B"),
}
WORK: Columns = {
    "against the bank": lambda step: scaled(bank_flops(step), "flop"),
    "against the batch": lambda step: scaled(batch_flops(step), "flop"),
    "exponentials": lambda step: scaled(exponentials(step), ""),
    "read of the bank": lambda step: scaled(read_bytes(step), "B"),
    "new entries sent": lambda step: scaled(new_entries_bytes(step), "B"),
    "received in all": lambda step: scaled(received_bytes(step), "B"),
}
RANKS: Columns = {"W": lambda row: str(row["ranks"])}
BANK: Columns = {"bank": lambda row: "sharded" if row["sharded"] else "whole"}
GATHER: Columns = {"gather": lambda row: "yes" if row["gather"] else "no"}
SLOTS: Columns = {"slots a rank": lambda row: f"{row['slots']:,}"}


def scale_table(name: str, record: Record) -> TextTable:
    """Make a table by name from the record of `benchmarks.ranks`."""
    return TABLES[name](record)


def _tabulate(rows: Iterable[Any], columns: Columns) -> TextTable:
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return TextTable(tuple(columns), cells)


def _cases(first: str, columns: Columns) -> TextTable:
    """Tabulate computed figures, one row for each case."""
    names, (headings, rows) = list(CASES), _tabulate(CASES.values(), columns)
    return TextTable(
        (first, *headings), [[name, *row] for name, row in zip(names, rows, strict=True)]
    )


def _bounds(record: Record) -> TextTable:
    def milliseconds(part: str) -> Callable[[Step], str]:
        return lambda step: f"{1000 * seconds_at_least(step, H200)[part]:,.2f}"

    parts = ("products", "exponentials", "reading", "messages")
    return _cases("ms, at the least", {part: milliseconds(part) for part in parts})


def _sent(record: Record) -> TextTable:
    lists = [messages(CASES[name]) for name in SENT]
    rows = [
        [of_all[0].what, of_all[0].collective, *(scaled(one.parcel, "B") for one in of_all)]
        for of_all in zip(*lists, strict=True)
    ]
    return TextTable(("to each other rank", "collective", *SENT), rows)


def _machine(record: Record) -> TextTable:
    columns: Columns = {
        "date": lambda row: row["date"][:10],
        "torch": lambda row: row["torch"],
        "processors": lambda row: str(row["processors"]),
        "load at the start": lambda row: ", ".join(
            f"{load:.1f}" for load in row["load_average_at_start"]
        ),
    }
    return _tabulate([record["environment"]], columns)


def _shards(record: Record) -> TextTable:
    """Compare times of the loss with a whole and with a sharded bank."""
    found = {(row["ranks"], row["entries"], row["sharded"]): row for row in record["times"]}
    columns: Columns = {
        **RANKS,
        "entries": lambda row: f"{row['entries']:,}",
        "sharded ÷ whole": lambda row: f"{row['to_whole']:.2f}",
        "spread, sharded": lambda row: f"{row['spread']:.2f}",
        "spread, whole": lambda row: f"{found[row['ranks'], row['entries'], False]['spread']:.2f}",
    }
    return _tabulate([row for row in record["times"] if row["sharded"]], columns)


def _linear(record: Record) -> TextTable:
    """Show how times grow with the number of entries."""
    groups: dict[tuple[int, bool], list[Record]] = {}
    for row in record["times"]:
        groups.setdefault((row["ranks"], row["sharded"]), []).append(row)
    first = next(iter(groups.values()))
    columns: Columns = {name: lambda group, cell=cell: cell(group[0])  # type: ignore[misc]
                        for name, cell in {**RANKS, **BANK}.items()}  # fmt: skip
    for index, row in enumerate(first):
        name = f"{row['entries'] / first[0]['entries']:.0f} × the entries"
        columns[name] = lambda group, index=index: f"{group[index]['to_smallest']:.2f}"  # type: ignore[misc]
    return _tabulate(groups.values(), columns)


def _flops(record: Record) -> TextTable:
    def counted(row: Record) -> str:
        ratios = sorted(count / (row["bank"] + row["batch"]) for count in row["counted"])
        return "–".join(f"{ratio:.2f}" for ratio in dict.fromkeys((ratios[0], ratios[-1])))

    columns: Columns = {
        **RANKS, **BANK, **GATHER,
        "flops computed": lambda row: f"{row['bank'] + row['batch']:,}",
        "counted ÷ computed": counted,
    }  # fmt: skip
    return _tabulate(record["flops"], columns)


def _counted(record: Record) -> TextTable:
    def sizes(kind: str) -> Callable[[Record], str]:
        return lambda row: "; ".join(f"{n:,}" for name, n in row["computed"] if name == kind) or "–"

    columns: Columns = {
        **RANKS, **BANK, **GATHER,
        "all-gather, bytes": sizes("all-gather"),
        "all-to-all, bytes": sizes("all-to-all"),
        "counted so": lambda row: "yes" if row["as_computed"] else "no",
    }  # fmt: skip
    return _tabulate(record["messages"], columns)


def _banks(record: Record) -> TextTable:
    columns: Columns = {
        **RANKS, **BANK, **SLOTS,
        "entries in all": lambda row: f"{row['held']:,}",
        "computed, MB a rank": lambda row: f"{row['computed_mb']:.2f}",
        "tensors": lambda row: f"{row['tensors_mb']:.2f}",
        "resident": lambda row: f"{row['resident_mb']:.2f}",
    }  # fmt: skip
    return _tabulate(record["banks"], columns)


def _losses(record: Record) -> TextTable:
    extra: Columns = {"extra MB a rank": lambda row: f"{row['extra_mb']:.1f}"}
    return _tabulate(record["losses"], {**RANKS, **BANK, **SLOTS, **extra})


TABLES: dict[str, Callable[[Record], TextTable]] = {
    "sizes": lambda record: _cases("", SIZES),
    "work": lambda record: _cases("", WORK),
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
    """Format a number with three digits and an SI prefix: 97.3 MB."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while value >= 999.5:
        value /= 1000
        prefix = next(prefixes)
    digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {prefix}{unit}".rstrip()
