"""Memory of a loss with a sharded bank, on several ranks on one machine.

    python -m benchmarks.ranks
    python -m benchmarks.ranks --ranks 1 2

Ranks are processes on gloo with one thread each. They share the processors of the machine, so no
time is measured. tests/distributed/test_messages.py counts messages and the bytes of banks.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import write_record
from benchmarks._measure.environment import look_at_machine
from benchmarks._ranks.measurements import BASE, Row, measure
from benchmarks._ranks.pool import Ranks
from benchmarks._tables.text import TextTable


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the results, and write them to a JSON."""
    parser = command_parser("ranks", __doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], metavar="W", help="numbers of ranks")
    add("--out", type=Path, metavar="FOLDER", help="folder for the results")
    options = parser.parse_args(arguments)
    environment = look_at_machine()
    rows: list[Row] = []
    for size in options.ranks:
        ranks = Ranks(size)
        try:
            found = ranks.run(measure, size)
        finally:
            ranks.close()
        rows += [
            max(own, key=lambda row: float(row["extra_mb"])) for own in zip(*found, strict=True)
        ]
    print(ranks_table(rows).aligned())
    if options.out is not None:
        record = {"environment": environment, "base": asdict(BASE), "losses": rows}
        write_record(options.out / "ranks.json", record)
        print(f"{options.out / 'ranks.json'} written")


def ranks_table(rows: list[Row]) -> TextTable:
    """Tabulate the memory of each loss."""
    cells = [
        [
            str(row["ranks"]),
            "sharded" if row["sharded"] else "whole",
            f"{row['slots']:,}",
            f"{row['extra_mb']:.1f}",
        ]
        for row in rows
    ]
    return TextTable(("W", "bank", "slots a rank", "extra MB a rank"), cells)


if __name__ == "__main__":
    main()
