"""The tables of docs/scale.md, computed by `_ranks.costs` or measured by `benchmarks.ranks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks._ranks import costs
from benchmarks._ranks.cases import CASES, H200, seconds_at_least
from benchmarks._tables.text import TextTable

Record = dict[str, Any]
Columns = dict[str, Callable[[Any], str]]
"""Headings, each with the function that formats a cell of the column."""

SENT = ("Cityscapes, sharded", "COCO-Stuff, every image", "10⁹ entries", "10⁹ entries, D = 64")
"""The cases whose messages are listed."""
PARTS = ("products", "exponentials", "reading", "messages")
SIZES: Columns = {
    "W": lambda step: str(step.ranks),
    "B": lambda step: str(step.images),
    "K": lambda step: f"{step.anchors:,}",
    "D": lambda step: str(step.dim),
    "slots a rank": lambda step: f"{costs.slots(step):,}",
    "entries N": lambda step: f"{costs.entries(step):,}",
    "bank a rank": lambda step: scaled(costs.bank_bytes(step), "B"),
    "its labels": lambda step: scaled(costs.label_bytes(step), "B"),
}
WORK: Columns = {
    "against the bank": lambda step: scaled(costs.bank_flops(step), "flop"),
    "against the batch": lambda step: scaled(costs.batch_flops(step), "flop"),
    "exponentials": lambda step: scaled(costs.exponentials(step), ""),
    "read of the bank": lambda step: scaled(costs.read_bytes(step), "B"),
    "new entries sent": lambda step: scaled(costs.new_entries_bytes(step), "B"),
    "received in all": lambda step: scaled(costs.received_bytes(step), "B"),
}


def scale_table(name: str, record: Record) -> TextTable:
    """Make a table by name from the record of `benchmarks.ranks`."""
    return TABLES[name](record)


def _cases(first: str, columns: Columns) -> TextTable:
    """Tabulate computed figures, one row for each case."""
    rows = [[name, *(cell(step) for cell in columns.values())] for name, step in CASES.items()]
    return TextTable((first, *columns), rows)


def _bounds(record: Record) -> TextTable:
    def milliseconds(part: str) -> Callable[[costs.Step], str]:
        return lambda step: f"{1000 * seconds_at_least(step, H200)[part]:,.2f}"

    return _cases("ms, at the least", {part: milliseconds(part) for part in PARTS})


def _sent(record: Record) -> TextTable:
    lists = [costs.messages(CASES[name]) for name in SENT]
    rows = [
        [of_all[0].what, of_all[0].collective, *(scaled(one.parcel, "B") for one in of_all)]
        for of_all in zip(*lists, strict=True)
    ]
    return TextTable(("to each other rank", "collective", *SENT), rows)


def _tabulate(rows: Iterable[Record], columns: dict[str, str]) -> TextTable:
    """Tabulate measured figures; a column is a heading and the format of its cells."""
    named = [
        row
        | {"which": "sharded" if row.get("sharded") else "whole"}
        | {"gathers": "yes" if row.get("gather") else "no"}
        for row in rows
    ]
    cells = [[cell.format(**row) for cell in columns.values()] for row in named]
    return TextTable(tuple(columns), cells)


def _machine(record: Record) -> TextTable:
    found = record["environment"]
    load = ", ".join(f"{load:.1f}" for load in found["load_average_at_start"])
    columns = {
        "date": "{date:.10}",
        "torch": "{torch}",
        "processors": "{processors}",
        "load at the start": load,
    }
    return _tabulate([found], columns)


def _shards(record: Record) -> TextTable:
    """Compare times of the loss with a whole and with a sharded bank."""
    whole = {(r["ranks"], r["entries"]): r["spread"] for r in record["times"] if not r["sharded"]}
    columns = {
        "W": "{ranks}",
        "entries": "{entries:,}",
        "sharded ÷ whole": "{to_whole:.2f}",
        "spread, sharded": "{spread:.2f}",
        "spread, whole": "{of_whole:.2f}",
    }
    sharded = [row for row in record["times"] if row["sharded"]]
    return _tabulate([r | {"of_whole": whole[r["ranks"], r["entries"]]} for r in sharded], columns)


def _linear(record: Record) -> TextTable:
    """Show how times grow with the number of entries."""
    groups: dict[tuple[int, bool], Record] = {}
    smallest = record["times"][0]["entries"]
    columns = {"W": "{ranks}", "bank": "{which}"}
    for row in record["times"]:
        heading = f"{row['entries'] / smallest:.0f} × the entries"
        columns[heading] = f"{{{heading}:.2f}}"
        group = groups.setdefault((row["ranks"], row["sharded"]), dict(row))
        group[heading] = row["to_smallest"]
    return _tabulate(groups.values(), columns)


def _flops(record: Record) -> TextTable:
    rows = []
    for row in record["flops"]:
        computed = row["bank"] + row["batch"]
        ratios = sorted(count / computed for count in row["counted"])
        ends = "–".join(f"{ratio:.2f}" for ratio in dict.fromkeys((ratios[0], ratios[-1])))
        rows.append(row | {"computed": computed, "ends": ends})
    columns = {
        "W": "{ranks}",
        "bank": "{which}",
        "gather": "{gathers}",
        "flops computed": "{computed:,}",
        "counted ÷ computed": "{ends}",
    }
    return _tabulate(rows, columns)


def _counted(record: Record) -> TextTable:
    kinds = ("all-gather", "all-to-all")
    rows = []
    for row in record["messages"]:
        sizes = {
            kind: "; ".join(f"{size:,}" for name, size in row["computed"] if name == kind) or "–"
            for kind in kinds
        }
        rows.append(row | sizes | {"so": "yes" if row["as_computed"] else "no"})
    columns = {"W": "{ranks}", "bank": "{which}", "gather": "{gathers}"}
    columns |= {f"{kind}, bytes": f"{{{kind}}}" for kind in kinds}
    return _tabulate(rows, {**columns, "counted so": "{so}"})


def _banks(record: Record) -> TextTable:
    columns = {
        "W": "{ranks}",
        "bank": "{which}",
        "slots a rank": "{slots:,}",
        "entries in all": "{held:,}",
        "computed, MB a rank": "{computed_mb:.2f}",
        "tensors": "{tensors_mb:.2f}",
        "resident": "{resident_mb:.2f}",
    }
    return _tabulate(record["banks"], columns)


def _losses(record: Record) -> TextTable:
    columns = {"W": "{ranks}", "bank": "{which}", "slots a rank": "{slots:,}"}
    return _tabulate(record["losses"], {**columns, "extra MB a rank": "{extra_mb:.1f}"})


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
